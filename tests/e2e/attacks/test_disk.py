"""Attacks through files inside (attacks.md, C) and through the file calls (D, what is left)."""

# ruff: noqa: ASYNC221, ASYNC240 - a test may block

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from .box import FILE, MIB, SCRATCH, Box, outside, outside_c
from .conftest import NewBox

pytestmark = pytest.mark.slow


async def listing(box: Box, path: str = ".") -> tuple[list[dict[str, Any]], bool]:
    """Give the entries of a folder, and whether the answer says that there are more."""
    async with box.api.get(f"/session/{box.name}/files", params={"path": path}) as answer:
        assert answer.status == 200, await answer.text()
        body = await answer.json()
    return json.loads(body["files"]), body.get("truncated", False)


async def download(box: Box, *paths: str) -> tuple[int, int]:
    """Fetch files; give the status and how many bytes came."""
    body = {"files": list(paths)}
    async with box.api.get(f"/session/{box.name}/download", json=body) as answer:
        count = 0
        async for piece in answer.content.iter_chunked(1 << 20):
            count += len(piece)
        return answer.status, count


# --- C1, C2: too much ---------------------------------------------------------------------------


async def test_a_full_disk_is_the_verdict_and_can_be_emptied(box: Box, tmp_path: Path) -> None:
    fill = "for n in {1..9}; do head -c 16M /dev/zero >fill$n || exit 1; done"
    subprocess.run(["/bin/bash", "-c", fill], cwd=tmp_path, check=True)  # control
    ended = await box.sh(fill)
    assert ended.told == ("disk-full", 1, None), ended
    used = sum(entry["size"] for entry in (await listing(box))[0])
    assert used <= SCRATCH
    assert (await box.sh("rm fill*")).told == ("exited", 0, None)


@pytest.mark.parametrize(
    ("way", "size"),
    [("head -c 64M /dev/zero >giant", FILE), ("exec truncate -s 1T giant", 0)],
    ids=["written", "sparse"],
)
async def test_a_file_beyond_the_largest_is_cut_short(
    box: Box, tmp_path: Path, way: str, size: int
) -> None:
    subprocess.run(["/bin/bash", "-c", way], cwd=tmp_path, check=True)  # control
    ended = await box.sh(way)
    assert ended.told[1] == 153
    if "exec" in way:
        assert ended.told == ("signalled", 153, "SIGXFSZ")
    assert [entry["size"] for entry in (await listing(box))[0] if entry["filename"] == "giant"] == [
        size
    ]


async def test_sparse_files_are_listed_whole_and_never_sent_beyond_the_cap(
    box: Box, tmp_path: Path
) -> None:
    make = f"mkdir many; for n in {{1..200}}; do truncate -s {FILE} many/$n; done"
    naive = f"{make}; tar -c many | head -c 80M | wc -c"
    sent = subprocess.run(["/bin/bash", "-c", naive], cwd=tmp_path, check=True, capture_output=True)
    assert int(sent.stdout) == 80 * MIB  # control: files that take no space, sent without an end
    assert (await box.sh(make)).told == ("exited", 0, None)
    entries, _ = await listing(box, "many")
    assert {entry["size"] for entry in entries} == {FILE}  # 6 GiB on a disk of 48 MiB
    begun = time.monotonic()
    status, sent = await download(box, "many")
    assert (status, sent < MIB) == (400, True)
    assert time.monotonic() - begun < 5


FILES = """
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
int main(void) {
    long made = 0, wanted = %d;
    char name[32];
    if (chdir("%s") < 0 || mkdir("many", 0755) < 0)
        return 2;
    for (; made < wanted; made++) {
        snprintf(name, sizeof(name), "many/%%ld", made);
        int fd = open(name, O_CREAT | O_WRONLY, 0600);
        if (fd < 0)
            break;
        close(fd);
    }
    printf("%%ld\\n", made);
    return made < wanted;
}
"""


@pytest.mark.parametrize("place", ["/home/work", "/tmp", "/var/tmp", "/dev/shm"])
async def test_empty_files_are_capped_by_number(
    new_box: NewBox, tmp_path: Path, place: str
) -> None:
    box = await new_box(mem=64 * MIB)
    box.needs_inodes()
    assert outside_c(FILES % (20_000, tmp_path)).stdout == "20000\n"  # control
    ended = await box.c(FILES % (20_000, place))
    share = 16 * 1024 if place == "/home/work" else 8 * 16 * 1024
    room = 64 * MIB // share - int(ended.out)
    assert 2 <= room <= 12, ended  # the folders, the program itself and what it was compiled from
    assert ended.told[1] == 1
    # Of the places only the home gives a verdict of its own; /tmp may be full for a good reason.
    assert ended.answer["outcome"] == ("disk-full" if place == "/home/work" else "exited")
    assert (await box.sh(f"rm -r {place}/many")).told == ("exited", 0, None)
    await box.works()


LONG_NAMES = """
place_of = lambda n: ["/home/work", "/tmp", "/var/tmp", "/dev/shm"][n]
made = 0
for n in range(4):
    os.chdir(place_of(n))
    try:
        for number in range(1 << 20):
            os.close(os.open(f"{number:0255}", os.O_CREAT | os.O_WRONLY))
            made += 1
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    try:
        with open(next(os.scandir()).name, "wb", 0) as file:
            while True: file.write(bytes(1 << 20))
    except OSError as error:
        assert error.errno in (errno.ENOSPC, errno.EFBIG), error
print(made)
sys.exit(1)
"""


async def test_places_full_of_names_and_bytes_leave_memory_for_the_session(
    new_box: NewBox,
) -> None:
    box = await new_box(mem=128 * MIB)
    box.needs_inodes()
    ended = await box.python("import signal; signal.signal(25, 1)\n" + LONG_NAMES)
    assert ended.told == ("disk-full", 1, None), ended
    assert 9000 < int(ended.out) < 12000
    assert (await box.sh("echo fine")).out == "fine\n"
    assert (await box.sh("find ~ /tmp /var/tmp /dev/shm -type f -delete")).told[1] == 0
    await box.works()


async def test_where_files_are_not_capped_by_number_they_are_by_memory(new_box: NewBox) -> None:
    box = await new_box(mem=64 * MIB)
    if box.walls["inodes"] != "memory":
        pytest.skip(f"here files are capped by: {box.walls['inodes']}")
    ended = await box.c(FILES % (200_000, "."))
    assert ended.answer["outcome"] == "out-of-memory", ended
    await (await new_box()).works()


async def test_a_listing_is_bounded(new_box: NewBox) -> None:
    box = await new_box(mem=2048 * MIB)  # with less it may not hold so many files
    ended = await box.c(FILES % (100_001, "."))
    assert ended.told == ("exited", 0, None)
    begun = time.monotonic()
    entries, is_cut = await listing(box, "many")
    assert len(entries) == 100_000
    assert is_cut
    assert time.monotonic() - begun < 20
    status, sent = await download(box, "many")
    assert (status, sent < MIB) == (400, True)
    await box.works()


@pytest.mark.skipif("RETORT_LONG" not in os.environ, reason="half a minute; set RETORT_LONG=1")
async def test_a_million_empty_files_change_nothing_outside(new_box: NewBox) -> None:
    mem = 1_010_000 * 16 * 1024  # one file for each 16 KiB; what they really take is 1 GiB
    if mem > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        pytest.skip("this host has not the memory to allow a session a million files")
    box = await new_box(mem=mem)
    ended = await box.c(FILES % (1_000_000, "."))
    assert (*ended.told, ended.out) == ("exited", 0, None, "1000000\n")
    begun = time.monotonic()
    entries, is_cut = await listing(box, "many")
    assert (len(entries), is_cut) == (100_000, True)
    assert time.monotonic() - begun < 20
    status, sent = await download(box, "many")
    assert (status, sent < MIB) == (400, True)
    await box.works()


# --- C3, C4: names and modes --------------------------------------------------------------------

NAMES = r"""
names = [b"-rf", b"--help", b"@x", b"a\nb", b"q\"'`$(id)", b"\xff\xfe", b"\x1b[2Jred", b" ", b"*",
         b"~", b"x" * 255, "\u202e\u00e9".encode(), b"\\", b"%00", b"a;b|c&d"]
for name in names: os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
depth = 0
fd = os.open(".", os.O_RDONLY)
for depth in range(3000):
    os.mkdir(b"d" * 200, dir_fd=fd)
    below = os.open(b"d" * 200, os.O_RDONLY, dir_fd=fd)
    os.close(fd)
    fd = below
"""


# What a server meets that lists by lines or text, and deletes by a shell or by path.
NAIVE = (
    NAMES
    + r"""
import subprocess
def sh(command):
    done = subprocess.run(["/bin/bash", "-c", command], capture_output=True, text=True)
    return (done.stdout + done.stderr).split()
print(len(os.listdir(b".")), *sh("ls -A | wc -l"))
try: "\n".join(os.listdir(".")).encode()
except UnicodeEncodeError: print("no text")
print(sh("rm *")[0])
try: os.rmdir("/".join(["d" * 200] * 3000))
except OSError as error: print(errno.errorcode[error.errno])
sh("rm -rf ./d*")  # for whoever removes this folder
"""
)


async def test_names_and_depths_of_any_kind_are_listed_and_deleted(box: Box) -> None:
    control = outside(NAIVE).stdout
    assert control == "16 17\nno text\nUsage:\nENAMETOOLONG\n"
    assert (await box.python(NAMES)).told == ("exited", 0, None)
    entries, _ = await listing(box)
    names = {entry["filename"] for entry in entries}
    assert {"-rf", "--help", "@x", "a\nb", "q\"'`$(id)", "\x1b[2Jred", " ", "*", "x" * 255} <= names
    status, _ = await download(box, "-rf")
    assert status == 200
    status, _ = await download(box, "d" * 200)  # 3000 levels: too long for any archive
    assert status in (200, 400)


LOCK = (
    "mkdir -p a/b/c; touch a/b/c/f; chmod 000 a/b/c/f a/b/c a/b a; mkdir ro; touch ro/f;"
    " chmod 500 ro; mkfifo fifo; chattr +i ro/f; python3 -c 'import socket;"
    ' socket.socket(socket.AF_UNIX).bind("s")\''
)


async def test_content_that_nobody_may_touch_goes_with_its_session(
    box: Box, tmp_path: Path
) -> None:
    # Control: its owner, who has no power over other people's files, cannot simply delete it.
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] * (os.geteuid() == 0)
    naive = subprocess.run(
        [*powerless, "/bin/bash", "-c", f"{LOCK}; LC_ALL=C rm -rf a ro"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    subprocess.run(["chmod", "-R", "u+rwX", "."], cwd=tmp_path, check=True)
    assert naive.returncode == 1
    assert naive.stderr.count("Permission denied") == 2
    assert (tmp_path / "a/b/c/f").exists()
    assert (tmp_path / "ro/f").exists()
    await box.sh(LOCK)
    assert {entry["filename"] for entry in (await listing(box))[0]} >= {"a", "ro", "fifo", "s"}
    # That it is deleted is compared after the test, with the rest of the host.


# --- C5: core dumps -----------------------------------------------------------------------------


async def test_a_crash_leaves_no_core_anywhere(box: Box, tmp_path: Path) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if not pattern.startswith(("|", "/")) and resource.getrlimit(resource.RLIMIT_CORE)[1]:
        crash = "ulimit -c unlimited; exec /bin/bash -c 'kill -SEGV $$'"
        subprocess.run(["/bin/bash", "-c", crash], cwd=tmp_path, check=False)
        assert list(tmp_path.glob("core*")), "control"
    before = set(Path.cwd().glob("core*"))
    ended = await box.sh("ulimit -c unlimited; ulimit -c; ulimit -Hc; kill -SEGV $$")
    assert ended.told == ("signalled", 139, "SIGSEGV")
    # 1 byte: the one limit under which a handler of the host that is a pipe is not run either.
    hard = [line for line in ended.out.splitlines() if line.isdigit()]
    assert set(hard) <= {"0", "1"}, ended
    limits = await box.sh("grep 'core file size' /proc/self/limits")
    assert limits.out.split()[4:6] in (["1", "1"], ["0", "0"])
    assert [e["filename"] for e in (await listing(box))[0] if "core" in e["filename"]] == []
    assert set(Path.cwd().glob("core*")) == before


# --- C6, C7: power by files and mounts ----------------------------------------------------------

POWER = """
import stat
def attempt(name, act):
    try:
        act()
        print(name, "done")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
attempt("block device", lambda: os.mknod("b", 0o600 | stat.S_IFBLK, os.makedev(8, 0)))
attempt("character device", lambda: os.mknod("c", 0o666 | stat.S_IFCHR, os.makedev(1, 3)))
open("f", "w").close()
attempt("capability", lambda: os.setxattr("f", "security.capability",
        bytes.fromhex("0100000202000000000000000000000000000000")))
attempt("owner", lambda: os.chown("f", 0, 0))
attempt("trusted", lambda: os.setxattr("f", "trusted.x", b"1"))
"""


async def test_no_file_gives_power(box: Box) -> None:
    if os.geteuid() == 0:
        assert outside(POWER).stdout.count("done") >= 4
    ended = await box.python(POWER)
    assert "done" not in ended.out, ended
    assert len(ended.out.splitlines()) == 5
    # A setuid bit may be set, and means nothing.
    ended = await box.sh("cp /usr/bin/id .; chmod 6777 id; ./id -u; ls -l id; su -c id </dev/null")
    assert ended.out.splitlines()[0] == "1000"


MOUNTS = """
def text(string): return ctypes.cast(ctypes.c_char_p(string), ctypes.c_void_p).value
for name, arguments in {
    "mount": (165, text(b"x"), text(b"/nowhere"), text(b"tmpfs"), 0, 0),
    "bind over /proc": (165, text(b"/tmp"), text(b"/proc/nothing"), 0, 4096, 0),
    "remount": (165, 0, text(b"/nowhere"), 0, 32, 0),
    "umount": (166, text(b"/nowhere"), 0),
    "pivot_root": (155, text(b"/nowhere"), text(b"/nowhere")),
    "chroot": (161, text(b"/nowhere")),
    "open_tree": (428, -1 & 0xffffffff, text(b"nowhere"), 0),
    "move_mount": (429, 99, text(b"a"), 99, text(b"b"), 0),
    "fsopen": (430, text(b"no such"), 0),
    "mount_setattr": (442, 99, text(b"a"), 0, 0, 0),
}.items():
    print(name + ":", errno.errorcode.get(call(*arguments)))
"""


async def test_nothing_can_be_mounted(box: Box) -> None:
    control = outside(MOUNTS)  # of things that are not there: nothing happens on the host
    if os.geteuid() == 0:
        assert "EPERM" not in control.stdout
    ended = await box.python(MOUNTS)
    assert ended.told == ("exited", 0, None), ended
    assert {line.split()[-1] for line in ended.out.splitlines()} == {"EPERM"}, ended.out
    assert (await box.sh("ls /proc/self/status")).told == ("exited", 0, None)


# --- C8, D4, D12: other sessions ----------------------------------------------------------------


async def test_nothing_of_a_session_is_seen_by_another(new_box: NewBox) -> None:
    one, two = await new_box(), await new_box()
    leave = (
        "for p in /tmp /var/tmp /dev/shm ~; do echo mine >$p/left; done; ipcmk -M 4096 -Q -S 1;"
        " keyctl add user left mine @u; echo $?"
    )
    await one.sh(leave)
    there = await one.sh("cat /tmp/left /dev/shm/left; ipcs -m | grep -c 1000")
    assert there.out.startswith("mine\nmine\n")  # control: a session's own files stay
    see = (
        "ls -A /tmp /var/tmp /dev/shm | grep left; ls ~; ipcs | grep -c ' work \\| 1000 ';"
        " cat /proc/[0-9]*/root/home/work/left /proc/[0-9]*/cwd/left 2>/dev/null; true"
    )
    assert (await two.sh(see)).out == "0\n"
    # Neither is anything left for a session that comes later.
    async with one.api.delete(f"/session/{one.name}") as answer:
        assert answer.status == 200
    assert (await (await new_box()).sh(see)).out == "0\n"


async def test_what_a_run_left_in_memory_is_gone_for_the_next(box: Box) -> None:
    # Files are the session's and stay; what processes hold ends with them.
    code = "import os\nheld = os.memfd_create('left')\nos.write(held, b'mine')\n"
    await box.python(code + "if os.fork() == 0: time.sleep(1000)\nos._exit(0)")
    ended = await box.sh("ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c memfd")
    assert ended.out == "0\n"


LINKS = """
def attempt(name, source, **where):
    try:
        os.link(source, name, **where)
        print(name, "done")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
attempt("setuid", "/usr/bin/passwd")
attempt("etc", "/etc/passwd")
attempt("init", "/proc/1/exe", follow_symlinks=True)
attempt("init as it is", "/.retort/init")
held = os.memfd_create("x")
attempt("memfd", f"/proc/self/fd/{held}", follow_symlinks=True)
open("own", "w").close()
attempt("across", "own", dst_dir_fd=os.open("/tmp", os.O_RDONLY))
"""


async def test_no_file_of_the_host_can_be_linked_to(box: Box, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    os.link(tmp_path / "a", tmp_path / "b")  # control
    ended = await box.python(LINKS)
    assert ended.told == ("exited", 0, None), ended
    assert "done" not in ended.out, ended


@pytest.mark.skipif(os.geteuid() != 0, reason="sessions have uids of their own only under root")
async def test_a_sessions_uid_opens_no_door_to_another_session(new_box: NewBox) -> None:
    """As if the pid namespace were not there: by another uid, /proc/PID of a session is shut."""
    one, two = await new_box(), await new_box()
    pids = {}
    for box in (one, two):
        await box.sh(f"touch {box.name}")
    for entry in Path("/proc").iterdir():
        for box in (one, two):
            # Not Path.exists: a process that may not be looked into is an error to it.
            if entry.name.isdigit() and os.path.exists(f"{entry}/root/home/work/{box.name}"):  # noqa: PTH110
                pids[box.name] = entry
    assert len(pids) == 2  # control: root of the host sees them
    own = [int((path / "status").read_text().split("Uid:")[1].split()[0]) for path in pids.values()]
    assert own[0] != own[1]
    target = pids[two.name]
    for what in ("root/home/work", "cwd", "fd", "environ", "mem", "maps"):
        done = subprocess.run(
            ["setpriv", f"--reuid={own[0]}", f"--regid={own[0]}", "--clear-groups",
             "cat" if what in ("environ", "mem", "maps") else "ls", f"{target}/{what}/"
             if what in ("root/home/work", "cwd") else f"{target}/{what}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode != 0, what
        assert "denied" in done.stderr, (what, done.stderr)
