"""A virtual machine with control groups v2: booted, given the tree, and gone after one job.

Nothing of it lasts: the image is opened as a snapshot, and the tree comes as a tar on a second
disk.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = {
    "root": "root, in a systemd service with Delegate=yes",
    "user": "an ordinary user, in a systemd service with User= and Delegate=yes",
    "scope": "an ordinary user, in a scope of their own systemd, with Delegate=yes",
    "undelegated": "an ordinary user, in a service without Delegate",
    "root-undelegated": "root, in a service without Delegate",
}
INIT = Path("src/retort/_bin/retort-init")  # built, so not in git; wanted all the same
TIMED_OUT = 124  # as timeout(1)
BROKEN = 125
#: A machine that has not booted by then hangs: emulated, now and then one does (both of its
#: processors spin in the guest's kernel). It takes 25 to 90 s.
BOOT_S = 300.0
BOOTS = 3

_MARK = re.compile(rb"\x1e((?:booted|begin|end|done)\b[^\x1e\n]*)\x1e")


@dataclasses.dataclass
class Ended:
    """How the job ended in one environment."""

    environment: str
    status: int
    seconds: float
    output: bytes


class MachineBroken(Exception):
    """The machine did not do its job; the message tells what its console said last."""


def make_image() -> Path:
    """Make the image if need be, and give its folder."""
    made = subprocess.run(
        [ROOT / "vm/make-image"], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        check=True, text=True,
    )  # fmt: skip
    return ROOT / made.stdout.strip()


def run(
    command: str,
    environments: Sequence[str],
    *,
    timeout_s: float,
    show: Callable[[bytes], None],
    begin: Callable[[str], None] = lambda environment: None,
) -> tuple[list[Ended], float | None]:
    """Boot, run a shell command in each environment, and shut down.

    Args:
        command: for bash, in the tree.
        timeout_s: for all of it; what is not done by then counts as `TIMED_OUT`. A machine that
            hangs at its start is started again, at most twice.
        show: gets output as it comes.
        begin: called before the output of each environment.

    Returns:
        The ends, one for each environment, and the seconds that booting took.

    Raises:
        MachineBroken: it did not boot, or ended before the job.
    """
    image = make_image()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and clean up
    with tempfile.TemporaryDirectory(prefix="retort-vm-") as name:
        folder = Path(name)
        job = folder / "job.tar"
        _write_job(job, command, environments)
        ends_at = time.monotonic() + timeout_s
        for _ in range(BOOTS):
            progress = _Progress(show, begin)
            is_late = _boot(image, job, progress, ends_at)
            if not is_late or progress.boot_s is not None or time.monotonic() >= ends_at:
                break
            print(f"The machine did not boot in {BOOT_S:.0f} s; once more.", file=sys.stderr)
        done = {end.environment for end in progress.ended}
        missing = [environment for environment in environments if environment not in done]
        if missing and not (is_late and time.monotonic() >= ends_at):
            console = image / "console.log"
            said = console.read_text(errors="replace").splitlines() if console.exists() else []
            raise MachineBroken("\n".join(["The machine ended early. Its console:", *said[-30:]]))
        progress.give_up(missing)
        return progress.ended, progress.boot_s


def _boot(image: Path, job: Path, progress: _Progress, ends_at: float) -> bool:
    """Run a machine to its end.

    Returns:
        bool: it was ended, for it had not booted in `BOOT_S` or not ended by `ends_at`.
    """
    console = job.with_name("console.log")
    process = subprocess.Popen(
        _qemu(image, job, console),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=job.parent,
        env=os.environ | {"TMPDIR": str(job.parent)},
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    def stop_unless_booted() -> None:
        if progress.boot_s is None:
            stop()

    timers = [
        threading.Timer(ends_at - time.monotonic(), stop),
        threading.Timer(BOOT_S, stop_unless_booted),
    ]
    for timer in timers:
        timer.start()
    try:
        assert process.stdout is not None
        while part := os.read(process.stdout.fileno(), 65536):
            progress.feed(part)
        process.wait()
    finally:
        for timer in timers:
            timer.cancel()
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        if console.exists():
            shutil.copy(console, image)  # of the last machine, to look at
    return late.is_set()


class _Progress:
    """Parts what the machine sends into output and marks (vm/guest)."""

    def __init__(self, show: Callable[[bytes], None], begin: Callable[[str], None]) -> None:
        self.ended: list[Ended] = []
        self.boot_s: float | None = None
        self._show = show
        self._begin = begin
        self._rest = b""
        self._output = b""
        self._began = self._start = time.monotonic()

    def feed(self, part: bytes) -> None:
        data = self._rest + part
        place = 0
        for mark in _MARK.finditer(data):
            self._print(data[place : mark.start()])
            place = mark.end()
            self._obey(mark[1].decode(errors="replace").split())
        # The beginning of a mark waits for its end.
        cut = data.find(b"\x1e", place)
        cut = len(data) if cut < 0 or len(data) - cut > 200 else cut
        self._print(data[place:cut])
        self._rest = data[cut:]

    def give_up(self, missing: Sequence[str]) -> None:
        for environment in missing:
            self._end(environment, TIMED_OUT)

    def _print(self, data: bytes) -> None:
        self._output += data
        self._show(data)

    def _obey(self, words: list[str]) -> None:
        match words:
            case ["booted", _]:
                self.boot_s = time.monotonic() - self._start
            case ["begin", environment]:
                self._began, self._output = time.monotonic(), b""
                self._begin(environment)
            case ["end", environment, status]:
                self._end(environment, int(status))

    def _end(self, environment: str, status: int) -> None:
        seconds = time.monotonic() - self._began
        self.ended.append(Ended(environment, status, seconds, self._output))
        self._began, self._output = time.monotonic(), b""


def _qemu(image: Path, job: Path, console: Path) -> list[str]:
    append = "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off quiet systemd.show_status=no"
    # Whatever becomes of us, no machine stays.
    bound = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()
    return [
        *bound,
        "qemu-system-x86_64",
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        # Emulation works everywhere, if slowly; kvm is for who knows that it works on theirs.
        # An old processor, as emulating the wide registers of a newer one makes it slower.
        # Without cmpxchg16b: Linux 6.12 panics at its start on what qemu 7.2 makes of that.
        *("-machine", "q35", "-accel", os.environ.get("VM_ACCEL", "tcg"), "-cpu", "Nehalem,-cx16"),
        *("-smp", "2", "-m", "4096"),  # more than a session asks for by default
        *("-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd")),
        *("-append", f"{append} systemd.unified_cgroup_hierarchy=1"),
        *("-drive", f"file={image / 'disk.ext4'},format=raw,if=virtio,snapshot=on"),
        *("-drive", f"file={job},format=raw,if=virtio,snapshot=on"),
        *("-device", "virtio-rng-pci", "-serial", f"file:{console}"),
        *("-device", "virtio-serial-pci", "-chardev", "file,id=out,path=/dev/stdout"),
        *("-device", "virtserialport,chardev=out,name=retort"),
    ]


def _write_job(tar: Path, command: str, environments: Sequence[str]) -> None:
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as job:
        for path in _tree():
            job.add(ROOT / path, str(path), recursive=False)
        _add_text(job, ".vm/command", command + "\n")
        _add_text(job, ".vm/environments", "".join(f"{name}\n" for name in environments))


def _tree() -> Iterator[Path]:
    """Give the work tree as it is: all that git knows or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, stdout=subprocess.PIPE, check=True,
    ).stdout  # fmt: skip
    paths = {Path(os.fsdecode(name)) for name in listed.split(b"\0") if name}
    yield from sorted(path for path in paths if os.path.lexists(ROOT / path))
    if (ROOT / INIT).exists():
        yield INIT


def _add_text(job: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode()
    info = tarfile.TarInfo(name)
    info.size = len(data)
    job.addfile(info, io.BytesIO(data))
