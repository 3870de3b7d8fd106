"""The system calls that no program in a session needs: a short deny-list for every step.

A denied call gives an error, it never kills: programs probe for what a host kernel has, and go on
without (attacks.md, I22). An allow-list would break programs at random as their C library moves.
The filter is compiled once by libseccomp; retort-init loads it into each standby child, so that it
covers all that a user can run, and not init itself.

Source: seccomp(2), seccomp_rule_add(3); DESIGN 3; attacks.md section E.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
from collections.abc import Iterable, Mapping, Sequence

from retort.errors import SandboxFault

LIBRARY = "libseccomp.so.2"

#: Refused with EPERM whatever their arguments.
FORBIDDEN: tuple[str, ...] = (
    # Looking into or steering other processes.
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd"),
    *("process_madvise", "process_mrelease"),
    # Namespaces and mounts: the sandbox's own cannot be left or rearranged.
    *("setns", "mount", "umount2", "umount", "pivot_root", "chroot", "move_mount", "open_tree"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "open_tree_attr", "statmount"),
    *("listmount",),
    # Large, young or seldom used parts of the host kernel.
    *("bpf", "perf_event_open", "userfaultfd", "fanotify_init", "fanotify_mark"),
    *("lookup_dcookie", "vhangup", "uselib", "sysfs", "_sysctl", "nfsservctl"),
    # Objects that no namespace parts.
    *("keyctl", "add_key", "request_key", "quotactl", "quotactl_fd"),
    *("open_by_handle_at", "name_to_handle_at", "syslog", "acct"),
    # The host itself.
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module"),
    *("create_module", "get_kernel_syms", "query_module", "swapon", "swapoff", "reboot"),
    *("settimeofday", "clock_settime", "clock_adjtime", "clock_adjtime64", "adjtimex"),
    *("clock_settime64", "stime", "iopl", "ioperm", "sethostname", "setdomainname"),
)

#: Refused with ENOSYS, which makes programs and C libraries take their older way.
MISSING: tuple[str, ...] = (
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "clone3",  # its flags are behind a pointer, which no filter can read; clone(2) is filtered
)

#: Refused with ENOSYS where sessions must not signal each other through a file that both can only
#: read: whole calls, and commands of fcntl(2). Programs take it for a file system without locks.
SIGNALLING: tuple[str, ...] = ("flock", "inotify_init", "inotify_init1")
SIGNALLING_COMMANDS: Mapping[str, int] = {
    **{"F_GETLK": 5, "F_SETLK": 6, "F_SETLKW": 7},
    **{"F_OFD_GETLK": 36, "F_OFD_SETLK": 37, "F_OFD_SETLKW": 38},
    **{"F_SETLEASE": 1024, "F_GETLEASE": 1025, "F_NOTIFY": 1026},
    **{"F_SET_RW_HINT": 1036, "F_SET_FILE_RW_HINT": 1038},  # kept in the inode; 1035 reads it
}

_NEW_NAMESPACES = (
    0x00000080,  # CLONE_NEWTIME
    0x00020000,  # CLONE_NEWNS
    0x02000000,  # CLONE_NEWCGROUP
    0x04000000,  # CLONE_NEWUTS
    0x08000000,  # CLONE_NEWIPC
    0x10000000,  # CLONE_NEWUSER
    0x20000000,  # CLONE_NEWPID
    0x40000000,  # CLONE_NEWNET
)
_CLONE_NEWTIME = 0x80  # in clone(2) these bits are the exit signal

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE = 0  # what getifaddrs(3) asks about the sandbox's own network
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # they type into a terminal (attacks.md, E4)
_LAST_FAMILY = 45  # beyond it any number is refused by one rule

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_NE, _GT, _MASKED_EQ = 1, 6, 7  # enum scmp_compare
_INT = 0xFFFFFFFF
_ATTRIBUTE_BAD_ARCH, _ATTRIBUTE_OPTIMIZE = 2, 8
_NATIVE = 0  # SCMP_ARCH_NATIVE
_UNKNOWN = -1  # of seccomp_syscall_resolve_name


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def is_available() -> bool:
    """Tell whether libseccomp is on this host."""
    try:
        _library()
    except OSError:
        return False
    return True


def compile_filter(*, allows_locks: bool = True, architecture: int | None = None) -> bytes:
    """Compile the deny-list.

    Calls by a foreign ABI (i386 or x32 on x86-64, 32-bit ARM on arm64) get ENOSYS.

    Args:
        allows_locks: files can be locked and watched; else `SIGNALLING` is refused, too.
        architecture: AUDIT_ARCH_ of the host kernel's headers; None: this machine's.

    Returns:
        The program as an array of `struct sock_filter`, 8 bytes each.

    Raises:
        SandboxFault: phase "seccomp"; libseccomp is missing or refuses a rule.
    """
    try:
        library = _library()
    except OSError as exc:
        raise SandboxFault("seccomp", f"{LIBRARY}: {exc}") from exc
    context = library.seccomp_init(ctypes.c_uint32(_ALLOW))
    if not context:
        raise SandboxFault("seccomp", "seccomp_init failed")
    try:
        if architecture is not None:
            _choose(library, context, architecture)
        _set(library, context, _ATTRIBUTE_BAD_ARCH, _ERRNO | errno.ENOSYS)
        # A binary tree instead of a list: the filter's length is not felt in every call.
        library.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, ctypes.c_uint32(2))
        _add_rules(library, context, allows_locks=allows_locks)
        return _exported(library, context)
    finally:
        library.seccomp_release(context)


def _add_rules(library: ctypes.CDLL, context: int, *, allows_locks: bool) -> None:
    def deny(name: str, error: int, comparisons: Sequence[_Comparison] = ()) -> None:
        _deny(library, context, name, error, comparisons)

    for name in FORBIDDEN:
        deny(name, errno.EPERM)
    for name in MISSING:
        deny(name, errno.ENOSYS)
    for flag in _NEW_NAMESPACES:
        deny("unshare", errno.EPERM, [_Comparison(0, _MASKED_EQ, flag, flag)])
        if flag != _CLONE_NEWTIME:
            deny("clone", errno.EPERM, [_Comparison(0, _MASKED_EQ, flag, flag)])
    # The host kernel takes 32 bits of these arguments; the upper half must not hide them.
    for family in _refused_families():
        for name in ("socket", "socketpair"):
            deny(name, errno.EAFNOSUPPORT, [_Comparison(0, _MASKED_EQ, _INT, family)])
    deny("socket", errno.EAFNOSUPPORT, [_Comparison(0, _GT, _LAST_FAMILY, 0)])
    deny(
        "socket",
        errno.EPROTONOSUPPORT,
        [_Comparison(0, _MASKED_EQ, _INT, _AF_NETLINK), _Comparison(2, _NE, _NETLINK_ROUTE, 0)],
    )
    # By number it reaches init, which has the programs' uid: no CPU time left would end it.
    deny("prlimit64", errno.EPERM, [_Comparison(0, _NE, 0), _Comparison(2, _NE, 0)])
    for request in (_TIOCSTI, _TIOCLINUX):
        deny("ioctl", errno.EPERM, [_Comparison(1, _MASKED_EQ, _INT, request)])
    if not allows_locks:
        for name in SIGNALLING:
            deny(name, errno.ENOSYS)
        for command in SIGNALLING_COMMANDS.values():
            deny("fcntl", errno.ENOSYS, [_Comparison(1, _MASKED_EQ, _INT, command)])


def _refused_families() -> Iterable[int]:
    allowed = (_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK)
    return (family for family in range(_LAST_FAMILY + 1) if family not in allowed)


def _deny(
    library: ctypes.CDLL, context: int, name: str, error: int, comparisons: Sequence[_Comparison]
) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == _UNKNOWN:  # younger than this libseccomp: nothing to deny it by
        return
    array = (_Comparison * len(comparisons))(*comparisons)
    result = library.seccomp_rule_add_array(
        context, ctypes.c_uint32(_ERRNO | error), number, ctypes.c_uint(len(comparisons)), array
    )
    # A call that only other architectures have is refused with EDOM; it cannot be made here.
    if result not in (0, -errno.EDOM):
        raise SandboxFault("seccomp", f"rule for {name}: {os.strerror(-result)}")


def _choose(library: ctypes.CDLL, context: int, architecture: int) -> None:
    result = library.seccomp_arch_add(context, ctypes.c_uint32(architecture))
    if result not in (0, -errno.EEXIST):
        raise SandboxFault("seccomp", f"architecture {architecture:#x}: {os.strerror(-result)}")
    if result == 0:
        library.seccomp_arch_remove(context, ctypes.c_uint32(_NATIVE))


def _set(library: ctypes.CDLL, context: int, attribute: int, value: int) -> None:
    result = library.seccomp_attr_set(context, attribute, ctypes.c_uint32(value))
    if result:
        raise SandboxFault("seccomp", f"attribute {attribute}: {os.strerror(-result)}")


def _exported(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("retort-seccomp", os.MFD_CLOEXEC)
    try:
        result = library.seccomp_export_bpf(context, fd)
        if result:
            raise SandboxFault("seccomp", f"export: {os.strerror(-result)}")
        os.lseek(fd, 0, os.SEEK_SET)
        with os.fdopen(os.dup(fd), "rb") as file:
            return file.read()
    finally:
        os.close(fd)


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(LIBRARY)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_release.restype = None
    library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
    library.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_arch_remove.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_rule_add_array.argtypes = (
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint),
        ctypes.POINTER(_Comparison),
    )
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    return library
