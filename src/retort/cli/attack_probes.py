"""The hostile programs of `retort selftest` that look for a way out; as in attack_programs.py."""

from __future__ import annotations

LINKS = r"""
os.symlink(os.environ["SELFTEST_FILE"], "file")
os.symlink(os.path.dirname(os.environ["SELFTEST_FILE"]), "folder")
os.symlink("/proc/self/environ", "environ")
os.symlink("/proc/self/root" + os.environ["SELFTEST_FILE"], "root")
os.symlink("file", "chain")
os.mkdir("planted")
for number in range(3):
    os.symlink(os.environ["SELFTEST_FILE"], f"planted/{number}")
held("links are planted")
"""

FIFOS = r"""
os.mkfifo("fifo")
server = socket.socket(socket.AF_UNIX)
server.bind("socket")
os.mkdir("folder")
held("a FIFO and a socket are planted")
"""

NAMESPACES = r"""
flags = {"time": 0x80, "mnt": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000,
         "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
for name, flag in flags.items():
    if call((272, 97), flag) == 0:
        broken(f"unshare of {name}")
    pid = libc.syscall(ctypes.c_long((56, 220)[HERE]), ctypes.c_long(flag | 17), 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    if pid > 0 and name != "time":
        broken(f"clone into a new {name}")
for name in os.listdir("/proc/1/ns") if not refused(os.listdir, "/proc/1/ns") else ():
    if not refused(lambda: open(f"/proc/1/ns/{name}")):
        if call((308, 268), os.open(f"/proc/1/ns/{name}", os.O_RDONLY), 0) == 0:
            broken(f"setns to {name}")
if call(435, ctypes.create_string_buffer(88), 88) != errno.ENOSYS:
    broken("clone3 is there")
held(f"{len(flags)} kinds are refused")
"""

CALLS = r"""
import mmap
numbers = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "kexec_load": (246, 104), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "fanotify_init": (300, 262),
    "quotactl": (179, 60), "swapon": (167, 224), "reboot": (169, 142), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "syslog": (103, 116),
    "setns": (308, 268), "mount": (165, 40), "move_mount": (429, 429), "fsopen": (430, 430),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "clone3": (435, 435),
}
ours = (errno.EPERM, errno.ENOSYS)
through = [name for name, number in numbers.items() if call(number, 0, 0, 0, 0, 0) not in ours]
foreign = 0
if HERE == 0:
    if call(0x40000000 | 39) != errno.ENOSYS:
        through.append("x32")
    # Its own process: without the old entry in the host kernel this is a crash.
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, getpid; int 0x80; ret
        place = ctypes.addressof(ctypes.c_char.from_buffer(code))
        result = ctypes.CFUNCTYPE(ctypes.c_int)(place)()
        os.write(writer, b"through" if result > 0 else b"")
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    if os.read(reader, 7):
        through.append("i386")
if through:
    broken(", ".join(through))
held(f"{len(numbers)} calls are refused, foreign entries too")
"""

SOCKETS = r"""
allowed = {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}
count = 0
for family in range(64):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        if family not in allowed:
            count += 1
            if not refused(socket.socket, family, kind):
                broken(f"family {family}, type {kind}")
for family in (socket.AF_INET, socket.AF_INET6):
    if not refused(socket.socket, family, socket.SOCK_RAW, 1):
        broken("a raw socket")
for protocol in range(1, 23):
    if not refused(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, protocol):
        broken(f"netlink protocol {protocol}")
held(f"{count} kinds of sockets are refused")
"""

TERMINAL = r"""
if not refused(os.open, "/dev/tty", os.O_RDWR):
    broken("there is a controlling terminal")
try:
    master, slave = os.openpty()
except OSError:
    held("no terminals at all")
for request, name in ((0x5412, "TIOCSTI"), (0x541C, "TIOCLINUX"), (0x5412 | 1 << 32, "TIOCSTI")):
    if libc.ioctl(slave, ctypes.c_ulong(request), b"x") >= 0:
        broken(f"{name} was obeyed")
held("TIOCSTI and TIOCLINUX are refused")
"""

READING = r"""
secret = os.environ.pop("SELFTEST_TOKEN")[::-1].encode()
for name in filter(str.isdigit, os.listdir("/proc")):
    if int(name) == os.getpid():
        continue
    for file in ("environ", "cmdline"):
        try:
            if secret in open(f"/proc/{name}/{file}", "rb").read():
                broken(f"the server's secret is in /proc/{name}/{file}")
        except OSError:
            pass
if any(secret in value for value in os.environb.values()):
    broken("the server's secret is in the environment")
for name in ("kcore", "keys", "key-users", "sched_debug", "timer_list", "kallsyms", "modules"):
    try:
        if open(f"/proc/{name}", "rb").read(100):
            broken(f"/proc/{name} can be read")
    except OSError:
        pass
for name in ("/sys/kernel", "/boot", "/root", "/var/lib", "/var/log"):
    if os.path.isdir(name) and not refused(os.listdir, name):
        broken(f"{name} can be listed")
for name in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern"):
    if not refused(os.open, name, os.O_WRONLY):
        broken(f"{name} can be opened for writing")
if not refused(lambda: open("/proc/self/oom_score_adj", "w", 1).write("-1000\n")):
    broken("the killer of processes was told to spare this one")
if len(list(filter(str.isdigit, os.listdir("/proc")))) > 8:
    broken("processes of others can be seen")
held("nothing of the server or the host kernel")
"""

DESCRIPTORS = r"""
found = []
for fd in range(3, 4096):
    try:
        os.fstat(fd)
        found.append(f"{fd}: {os.readlink(f'/proc/self/fd/{fd}')}")
    except OSError:
        pass
found = [name for name in found if os.path.basename(__file__) not in name]
if found:
    broken(", ".join(found))
if sorted(os.listdir("/.retort")) != ["init"] if os.path.isdir("/.retort") else False:
    broken("init's folder has more than init")
held("0 to 2 only")
"""

NETWORK = r"""
lines = open("/proc/net/dev").read().splitlines()[2:]
devices = sorted(line.split(":")[0].strip() for line in lines)
if devices != ["lo"]:
    broken(f"devices: {', '.join(devices)}")
port = int(os.environ["SELFTEST_PORT"])
for host in ("127.0.0.1", "::1", "192.0.2.1", "2001:db8::1", "169.254.169.254"):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        if kind == socket.SOCK_DGRAM and host in ("127.0.0.1", "::1"):
            continue
        try:
            with socket.socket(family, kind) as client:
                client.settimeout(1)
                client.connect((host, port))
        except TimeoutError:
            broken(f"{host} is routed")
        except OSError:
            continue
        broken(f"{host} was reached")
held("loopback of its own only")
"""

FLOOD = r"""
line = b"x" * 65536
for _ in range(256):
    os.write(1, line)
    os.write(2, line)
"""

ENDLESS = r"""
while True:
    os.write(1, b"\0\xff\n" * 1000)
"""

HOSTNAME = r"""
if not refused(socket.sethostname, "other"):
    broken("the host name was set")
if not refused(time.clock_settime, time.CLOCK_REALTIME, 0):
    broken("the clock was set")
held("host name and clock are refused")
"""
