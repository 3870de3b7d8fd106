"""The hostile programs of `retort selftest` against what a session may use: small Python.

Each ends with a line `held ...` or `broken ...`, unless it is meant to be killed. They are bounded:
where a wall is missing after all they stop by themselves, and they contact nobody outside.
"""

from __future__ import annotations

PRELUDE = r"""
import ctypes, errno, fcntl, os, resource, signal, socket, stat, sys, time
libc = ctypes.CDLL(None, use_errno=True)
HERE = 0 if os.uname().machine == "x86_64" else 1

def call(number, *words):
    "Make a system call; gives its error number, 0 when it was done."
    if isinstance(number, tuple):
        number = number[HERE]
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
    return 0 if libc.syscall(ctypes.c_long(number), *words) >= 0 else ctypes.get_errno()

def end(word, text, code):
    os.write(1, f"{word} {text}\n".encode())
    os._exit(code)

def held(text="", code=0):
    end("held", text, code)

def broken(text):
    end("broken", text, 1)

def refused(action, *words):
    "Say whether an action fails."
    try:
        action(*words)
    except (OSError, ValueError):
        return True
    return False
"""

FORK_BOMB = r"""
def grow(depth):
    while depth:
        depth -= 1
        if os.fork() == 0:
            try:
                grow(depth)
            finally:
                time.sleep(60)
                os._exit(0)
try:
    for _ in range(3000):
        if os.fork() == 0:
            try:
                grow(4)
            except OSError:
                pass
            time.sleep(60)
            os._exit(0)
except OSError as exc:
    held(f"fork: {errno.errorcode[exc.errno]}", 7)
broken("3000 forks were allowed")
"""

THREAD_BOMB = r"""
import threading
threading.stack_size(65536)
count = 0
try:
    while count < 3000:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        count += 1
except RuntimeError:
    held(f"refused after {count} threads", 7)
broken("3000 threads were allowed")
"""

DAEMON = r"""
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        if os.fork():
            os._exit(0)
        for fd in range(3):
            os.close(fd)
        time.sleep(1000)
while True:
    try:
        os.wait()
    except ChildProcessError:
        held("20 daemons were started")
"""

OPEN_OUTPUT = r"""
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)
held("5 children keep the output open")
"""

STUBBORN = r"""
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
if os.fork() == 0:
    os.kill(os.getpid(), signal.SIGSTOP)
while True:
    pass
"""

SPIN = r"""
for _ in range(3):
    if os.fork() == 0:
        break
while True:
    pass
"""

SLEEP = "time.sleep(1000)\n"

ZOMBIES = r"""
for _ in range(10):
    for _ in range(30):
        if os.fork() == 0:
            os.fork()
            os._exit(0)
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass
for _ in range(200):
    time.sleep(0.01)
    states = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                states.append(open(f"/proc/{name}/stat").read().rpartition(")")[2].split()[0])
            except OSError:
                pass
    if "Z" not in states:
        held("300 orphans were reaped")
broken(f"{states.count('Z')} zombies stay")
"""

STRIKE = r"""
import struct
if os.fork() == 0:
    time.sleep(1000)
if call((101, 117), 16, 1, 0, 0) == 0:
    broken("ptrace of pid 1")
if call((302, 261), 1, 0, struct.pack("QQ", 0, 0), 0) == 0:
    broken("prlimit of pid 1")
if not refused(os.pidfd_open, 1):
    fd = os.pidfd_open(1)
    if call(438, fd, 0, 0) == 0:
        broken("took a descriptor of pid 1")
if not refused(lambda: open("/proc/1/mem", "r+b", 0)):
    broken("pid 1's memory can be opened")
if not refused(os.listdir, "/proc/1/fd"):
    broken("pid 1's descriptors can be seen")
for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV):
    refused(os.kill, 1, number)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.kill(-1, signal.SIGKILL)
held("pid 1 lives on after kill -1")
"""

RAISE = r"""
names = ("CORE", "FSIZE", "NOFILE", "NPROC", "STACK")
for name in names:
    which = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        if not refused(resource.setrlimit, which, (hard + 1, hard + 1)):
            broken(f"{name} was raised")
    elif name != "NPROC":
        broken(f"{name} has no limit")
if not refused(os.nice, -5):
    broken("nice -5")
if not refused(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)):
    broken("real-time scheduling")
held("no limit was raised")
"""

MEMORY = r"""
kept = []
for _ in range(64):
    kept.append(b"x" * (8 << 20))
broken("512 MiB were touched")
"""

SHARED_MEMORY = r"""
import mmap
if os.fork() == 0:
    time.sleep(1000)
fds = []
for index in range(64):
    fd = os.memfd_create(f"m{index}")
    fds.append(fd)
    for _ in range(8):
        os.write(fd, b"x" * (1 << 20))
broken("512 MiB of nameless files were written")
"""

TMPFS = r"""
told = []
for folder in ("/dev/shm", "/tmp", "/var/tmp"):
    size = 0
    with open(f"{folder}/full", "wb", 0) as file:
        try:
            while size < 1 << 28:
                size += file.write(b"x" * (1 << 20))
        except OSError as exc:
            told.append(f"{folder} {errno.errorcode[exc.errno]} at {size >> 20} MiB")
    if size >= 1 << 28:
        broken(f"{folder} took 256 MiB")
    os.unlink(f"{folder}/full")
for folder in ("/", "/dev", "/etc", "/usr", "/run", "/var", "/home", "/proc", "/.retort"):
    if not refused(lambda: open(f"{folder}/selftest", "w")):
        broken(f"{folder} can be written")
held(", ".join(told))
"""

PEAK = r"""
kept = b"x" * (60 << 20)
held("60 MiB were touched")
"""

DISK = r"""
for name in ("sparse",):
    with open(name, "wb") as file:
        if not refused(os.ftruncate, file.fileno(), 1 << 40):
            broken("a sparse file of 1 TiB")
size = 0
try:
    for index in range(64):
        with open(f"f{index}", "wb", 0) as file:
            for _ in range(8):
                size += file.write(b"x" * (1 << 20))
except OSError as exc:
    held(f"{errno.errorcode[exc.errno]} at {size >> 20} MiB", 1)
broken("512 MiB were written")
"""

INODES = r"""
count = 0
try:
    for index in range(200):
        os.mkdir(f"d{index}")
        for number in range(1000):
            os.close(os.open(f"d{index}/{number}", os.O_CREAT | os.O_WRONLY))
            count += 1
except OSError as exc:
    held(f"{errno.errorcode[exc.errno]} at {count} files", 1)
broken("200000 files were made")
"""

CORE = r"""
pid = os.fork()
if pid == 0:
    refused(resource.setrlimit, resource.RLIMIT_CORE, (1 << 30, 1 << 30))
    os.abort()
status = os.waitpid(pid, 0)[1]
if os.WCOREDUMP(status):
    broken("a core was dumped")
if [name for name in os.listdir() if name.startswith("core")]:
    broken("there is a core file")
held(f"hard limit {resource.getrlimit(resource.RLIMIT_CORE)[1]}")
"""

PRIVILEGE = r"""
status = dict(line.split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
if status["NoNewPrivs"].strip() != "1":
    broken("no_new_privs is not set")
for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
    if int(status[name], 16):
        broken(f"{name} is {status[name].strip()}")
for mode in (stat.S_IFCHR, stat.S_IFBLK):
    if not refused(os.mknod, "device", mode | 0o666, os.makedev(1, 3)):
        broken("a device was made")
if not (refused(os.setuid, 0) and refused(os.setgid, 0) and refused(os.setgroups, [0])):
    broken("became root")
if os.environ.get("HOME") != "/home/work" or os.getuid() == 0:
    broken(f"uid {os.getuid()}")
for line in open("/proc/self/mounts"):
    place, options = line.split()[1], line.split()[3].split(",")
    if "rw" in options and place != "/proc" and not {"nosuid", "nodev"} <= set(options):
        if not place.startswith("/dev"):
            broken(f"{place}: {','.join(options)}")
held("no capability, no setuid, no device")
"""

MOUNTS = r"""
tries = {
    "mount": call((165, 40), b"none", b"/tmp", b"tmpfs", 0, 0),
    "bind": call((165, 40), b"/tmp", b"/proc", 0, 4096, 0),
    "umount": call((166, 39), b"/proc", 2),
    "pivot_root": call((155, 41), b"/tmp", b"/tmp"),
    "chroot": call((161, 51), b"/tmp"),
    "fsopen": call(430, b"tmpfs", 0),
    "open_tree": call(428, -100, b"/", 1),
    "mount_setattr": call(442, -100, b"/", 0, 0, 0),
}
if done := [name for name, error in tries.items() if not error]:
    broken(", ".join(done))
held(f"{len(tries)} ways to mount are refused")
"""
