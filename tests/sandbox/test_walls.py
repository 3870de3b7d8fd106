"""What a program inside cannot do; where it matters, the same act is shown to work outside."""

# ruff: noqa: ASYNC221, ASYNC240, PTH115, PTH116 - a test may block, and looks at /proc by name

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from retort.sandbox.rootfs import Base

SIZED = {"/home/work": 8 << 20, "/tmp": 2 << 20, "/var/tmp": 2 << 20, "/dev/shm": 1 << 20}


async def python(box, text: str):
    """Run a Python text inside."""
    return await box.run("/usr/bin/python3", "-IS", "-c", text)


async def mounts_inside(box) -> list[tuple[str, set[str], str, str]]:
    """Mount point, options, type and super options of every mount seen inside."""
    table = []
    for line in (await box.run("/bin/cat", "/proc/self/mountinfo")).out.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, supers = right.split()
        table.append((left.split()[4], set(left.split()[5].split(",")), kind, supers))
    return table


async def test_only_the_sized_places_are_mounted_writable(start) -> None:
    writable = {
        (place, kind)
        for place, options, kind, _ in await mounts_inside(await start())
        if "rw" in options
    }
    assert {place for place, kind in writable if kind == "tmpfs"} == set(SIZED)
    others = {place for place, kind in writable if kind != "tmpfs"}
    nodes = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
    assert others == {"/proc", "/dev/pts", *nodes}


async def test_every_mount_is_nosuid_and_only_dev_nodes_are_devices(start) -> None:
    for place, options, _, _ in await mounts_inside(await start()):
        assert "nosuid" in options, place
        assert "nodev" in options or place.startswith("/dev/"), place


async def test_nothing_but_the_sized_places_takes_a_new_file(start) -> None:
    done = await (await start()).sh(
        "for d in $(find / -path /proc -prune -o -path /usr -prune -o -type d -print 2>/dev/null)"
        " /usr /usr/bin /proc /proc/1 /proc/self/task; do"
        ' : >"$d/.probe" && echo "$d"; done 2>/dev/null'
    )
    assert set(done.out.split()) == set(SIZED)


@pytest.mark.parametrize("point", SIZED)
async def test_a_place_is_full_at_its_size(start, point: str) -> None:
    box = await start()
    done = await box.sh(f"head -c 64M /dev/zero >{point}/fill; stat -c %s {point}/fill")
    assert "No space left" in done.err
    assert int(done.out) == SIZED[point]
    assert (await box.sh(f"rm {point}/fill; echo x >{point}/again")).code == 0


async def test_home_is_the_programs_own_and_tmp_is_sticky(start) -> None:
    done = await (await start()).sh("stat -c '%U %a' /home/work /tmp /var/tmp /dev/shm")
    assert done.out.split("\n")[:4] == ["work 755", "work 1777", "work 1777", "work 1777"]


async def test_files_made_inside_belong_to_uid_1000_inside(start) -> None:
    done = await (await start()).sh("touch f; stat -c '%u %g' f")
    assert done.out == "1000 1000\n"


async def test_there_is_no_network_but_loopback(start) -> None:
    box = await start()
    done = await box.sh("tail -n +3 /proc/net/dev | cut -d: -f1; cat /proc/net/route | tail -n +2")
    assert done.out.split() == ["lo"]
    done = await python(
        box,
        "import socket\ns = socket.socket(); s.settimeout(2)\n"
        "try: s.connect(('192.0.2.1', 80))\nexcept OSError as e: print(e.strerror)",
    )
    assert done.out == "Network is unreachable\n"


async def test_a_listener_of_the_host_is_out_of_reach(start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        text = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        outside = subprocess.run(["/usr/bin/python3", "-c", text], check=False)
        assert outside.returncode == 0  # control
        done = await python(await start(), text)
        assert "Connection refused" in done.err


async def test_abstract_sockets_of_the_host_are_out_of_reach(start) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0retort-test-{os.getpid()}")
        server.listen()
        text = (
            f"import socket; socket.socket(socket.AF_UNIX).connect('\\0retort-test-{os.getpid()}')"
        )
        assert subprocess.run(["/usr/bin/python3", "-c", text], check=False).returncode == 0
        assert "Connection refused" in (await python(await start(), text)).err


async def test_every_namespace_is_its_own(start) -> None:
    names = ("pid", "ipc", "uts", "net", "mnt", "user", "cgroup")
    one, two = await start(), await start()
    seen = []
    for box in (one, two):
        done = await box.sh("; ".join(f"readlink /proc/self/ns/{name}" for name in names))
        seen.append(done.out.split())
    ours = [os.readlink(f"/proc/self/ns/{name}") for name in names]
    for name, *three in zip(names, *seen, ours, strict=True):
        assert len(set(three)) == 3, name


async def test_there_is_no_capability_and_no_way_to_get_one(start) -> None:
    done = await (await start()).sh("cat /proc/self/status /proc/1/status")
    sets = re.findall(r"Cap(?:Inh|Prm|Eff|Bnd|Amb):\t(\w+)", done.out)
    assert set(sets) == {"0" * 16}
    assert re.findall(r"NoNewPrivs:\t(\d)", done.out) == ["1", "1"]
    # Without root there is no dropping of groups: each is the sandbox's own or mapped to nobody.
    left = {"1000", "65534"} if os.geteuid() else set()
    groups = re.findall(r"Groups:\t(.*)", done.out)
    assert len(groups) == 2
    assert {group for line in groups for group in line.split()} <= left


async def test_user_namespaces_cannot_be_made(start) -> None:
    done = await (await start()).sh("unshare --user true; unshare --net true; unshare -Ur id")
    assert done.code != 0
    assert done.err.count("unshare failed") == 3


async def test_mounting_is_refused(start) -> None:
    done = await (await start()).sh(
        "mount -t tmpfs x /tmp; mount --bind /tmp /usr; mount -o remount,rw /; umount /etc;"
        " chroot / true"
    )
    assert done.code != 0
    assert (await (await start()).sh("touch /usr/x /etc/x /x; chmod 777 /")).code != 0


async def test_device_nodes_of_the_host_cannot_be_changed(start) -> None:
    before = os.stat("/dev/null").st_mode
    done = await (await start()).sh("chmod 600 /dev/null; mknod /tmp/sda b 8 0; mknod n c 1 3")
    assert done.code != 0
    assert os.stat("/dev/null").st_mode == before


async def test_reading_a_shared_file_does_not_tell_when_it_was_read(start, base: Base) -> None:
    for name in ("hosts", "group"):
        path = base.etc / name
        os.utime(path, ns=(0, path.stat().st_mtime_ns))
    (base.etc / "group").read_bytes()
    if (base.etc / "group").stat().st_atime_ns == 0:
        pytest.skip("this host keeps no access times")  # the control
    done = await (await start()).sh("cat /etc/hosts; touch -a /etc/hosts")
    assert (done.code, "localhost" in done.out) == (1, True)
    assert (base.etc / "hosts").stat().st_atime_ns == 0


async def test_kernel_settings_cannot_be_written(start) -> None:
    box = await start()
    targets = (
        "/proc/sys/kernel/hostname /proc/sys/kernel/core_pattern /proc/sys/vm/drop_caches"
        " /proc/sysrq-trigger /proc/sys/user/max_user_namespaces /proc/1/oom_score_adj"
        " /proc/irq/default_smp_affinity"
    )
    done = await box.sh(
        f"for f in {targets}; do if [ -e $f ]; then (echo -n 999 >$f) && echo wrote $f; fi; done"
    )
    assert "wrote /proc/sys" not in done.out
    assert "trigger" not in done.out
    assert "irq" not in done.out


async def test_host_wide_files_of_proc_are_empty(start) -> None:
    done = await (await start()).sh(
        "cat /proc/{keys,key-users,kcore,kallsyms,modules,timer_list,latency_stats,sched_debug}"
        " /proc/config.gz 2>/dev/null | wc -c"
    )
    assert int(done.out) == 0
    assert Path("/proc/kallsyms").stat()  # control: there outside


async def test_sys_is_not_there(start) -> None:
    assert (await (await start()).sh("ls /sys /boot /root /mnt /srv /media")).code == 2


async def test_processes_of_the_host_are_not_seen(start) -> None:
    done = await (await start()).sh("ls /proc | grep -c '^[0-9]'")
    assert int(done.out) <= 4
    assert sum(p.name.isdigit() for p in Path("/proc").iterdir()) > 4  # control


async def test_etc_is_ours(start) -> None:
    box = await start(hostname="inside")
    done = await box.sh("cat /etc/passwd /etc/group /etc/hosts /etc/nsswitch.conf; id")
    assert "work:x:1000:1000:work:/home/work:/bin/bash" in done.out
    assert len(done.out.splitlines()) < 30
    done = await box.sh("ls /etc")
    names = set(done.out.split())
    assert not names & {"shadow", "gshadow", "machine-id", "sudoers", "ssh", "fstab", "pip.conf"}
    assert {"alternatives", "ld.so.cache", "ssl"} <= names
    assert os.uname().nodename not in (await box.sh("hostname; cat /etc/hostname")).out.split()


async def test_no_secret_of_the_servers_environment_is_inside(start, monkeypatch) -> None:
    monkeypatch.setenv("RETORT_SECRET", "very-secret")
    done = await (await start()).sh(
        "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'"
    )
    assert "very-secret" not in done.out


async def test_init_has_no_descriptor_but_its_socket(start) -> None:
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    os.set_inheritable(fd, True)  # control: a careless neighbour in the server
    try:
        box = await start()
    finally:
        os.close(fd)
    links = {
        int(entry.name): os.readlink(entry)
        for entry in Path(f"/proc/{box.sandbox.pid}/fd").iterdir()
    }
    assert {links[n] for n in (0, 1, 2)} == {"/dev/null"}
    rest = [text for number, text in links.items() if number > 2]
    assert rest == [text for text in rest if text.startswith("socket:")]


async def test_the_monitor_keeps_no_descriptor_of_the_server(start) -> None:
    box = await start()
    monitor = Path(f"/proc/{box.sandbox.monitor.pid}/fd")
    kept = {os.readlink(entry) for entry in monitor.iterdir()} - {"/dev/null"}
    assert all(text.startswith(("pipe:", "anon_inode:")) for text in kept), kept


async def test_sessions_do_not_see_each_others_files_and_ipc(start) -> None:
    one, two = await start(), await start()
    await one.sh("echo s >/tmp/s; echo s >/dev/shm/s; echo s >~/s; ipcmk -M 4096")
    done = await two.sh("ls -A /tmp /dev/shm /home/work /var/tmp; ipcs -m | grep -c 1000")
    assert "s" not in done.out.split()
    assert done.out.split()[-1] == "0"


async def test_common_tools_work(start) -> None:
    done = await (await start()).sh(
        "set -e; cat </dev/null; date; getent passwd work; getent hosts localhost; ls -l /;"
        "python3 -c 'import ssl; ssl.create_default_context(); import multiprocessing as m;"
        " m.Lock()'; command -v awk; awk 'BEGIN{print 1}'; script -qc true /dev/null"
    )
    assert (done.code, done.err) == (0, "")


async def test_a_setuid_program_gives_nothing(start) -> None:
    done = await (await start()).sh("cp /bin/id .; chmod 6755 id; ./id -u; su -c id </dev/null")
    assert done.out.split() == ["1000"]
