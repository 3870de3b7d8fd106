"""The deny-list of each architecture, judged by a small interpreter of its program (BPF)."""

from __future__ import annotations

import errno
import struct

import pytest

from retort.config import Config, Sandbox
from retort.errors import SandboxFault
from retort.sandbox import seccomp
from retort.sandbox.seccomp import SIGNALLING_COMMANDS, compile_filter, is_available
from retort.wiring.server import filter_of

pytestmark = pytest.mark.skipif(not is_available(), reason="libseccomp is not installed")

X86_64, I386, ARM64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028  # linux/audit.h
X32 = 0x40000000
ALLOWED = 0

#: (x86-64, arm64), from asm/unistd_64.h and asm-generic/unistd.h; None: arm64 has no such call.
REFUSED: dict[str, tuple[int, int | None]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "vhangup": (153, 58), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "syslog": (103, 116),
    "acct": (163, 89), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None),
    "ioperm": (173, None), "uselib": (134, None), "sysfs": (139, None), "_sysctl": (156, None),
    "create_module": (174, None), "query_module": (178, None), "nfsservctl": (180, None),
}  # fmt: skip
ABSENT = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "clone3": 435}
#: What programs need, with arguments: (x86-64, arm64, arguments...).
NEEDED = {
    "read": (0, 63), "write": (1, 64), "execve": (59, 221), "futex": (202, 98),
    "clone of a thread": (56, 220, 0x3D0F00), "clone of a process": (56, 220, 0x1200011),
    "unshare of files": (272, 97, 0x400), "its own limits": (302, 261, 0, 7, 0x7FFF0000),
    "limits of others, read only": (302, 261, 77, 7, 0, 0x7FFF0000),
    "a unix socket": (41, 198, 1, 1, 0), "an internet socket": (41, 198, 2, 1, 0),
    "routes": (41, 198, 16, 3, 0), "the size of a terminal": (16, 29, 1, 0x5413),
    "close on exec": (72, 25, 3, 2, 1), "seals of a memfd": (72, 25, 3, 1033, 1),
}  # fmt: skip
LOCKS = {"flock": (73, 32), "inotify_init1": (294, 26)}
FCNTL = (72, 25)


def judge(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """Run a filter on one call; gives the errno that it answers, 0 when the call is let through."""
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<iIQ6Q", number, architecture, 0, *padded)
    code = list(struct.iter_unpack("<HBBI", program))
    place = accumulator = 0
    while True:
        operation, if_true, if_false, k = code[place]
        place += 1
        match operation:
            case 0x20:  # BPF_LD | BPF_W | BPF_ABS
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x54:  # BPF_ALU | BPF_AND | BPF_K
                accumulator &= k
            case 0x05:  # BPF_JMP | BPF_JA
                place += k
            case 0x15:
                place += if_true if accumulator == k else if_false
            case 0x25:
                place += if_true if accumulator > k else if_false
            case 0x35:
                place += if_true if accumulator >= k else if_false
            case 0x06:  # BPF_RET | BPF_K
                return 0 if k == 0x7FFF0000 else _errno_of(k)
            case _:
                raise AssertionError(f"operation {operation:#x}")


def _errno_of(action: int) -> int:
    assert action & 0xFFFF0000 == 0x00050000, f"not an errno: {action:#x}"
    return action & 0xFFFF


@pytest.fixture(scope="module", params=[X86_64, ARM64], ids=["x86-64", "arm64"])
def architecture(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def numbers(pair: tuple[int, int | None], architecture: int) -> int | None:
    return pair[0] if architecture == X86_64 else pair[1]


def test_each_refused_call_answers_its_error(architecture: int) -> None:
    program = compile_filter(architecture=architecture)
    told = {
        name: judge(program, architecture, number)
        for name, pair in REFUSED.items()
        if (number := numbers(pair, architecture)) is not None
    }
    assert {name for name, error in told.items() if error != errno.EPERM} == set()
    told = {name: judge(program, architecture, number) for name, number in ABSENT.items()}
    assert set(told.values()) == {errno.ENOSYS}


def test_what_programs_need_is_let_through(architecture: int) -> None:
    program = compile_filter(architecture=architecture)
    for name, (x86, arm, *arguments) in NEEDED.items():
        number = x86 if architecture == X86_64 else arm
        assert judge(program, architecture, number, *arguments) == ALLOWED, name


@pytest.mark.parametrize(
    ("pair", "arguments", "error"),
    [
        ((56, 220), (0x10000000 | 17,), errno.EPERM),  # clone into a new user namespace
        ((272, 97), (0x20000,), errno.EPERM),
        ((272, 97), (0x80,), errno.EPERM),
        ((41, 198), (40, 1), errno.EAFNOSUPPORT),  # vsock
        ((41, 198), (40 | 1 << 32, 1), errno.EAFNOSUPPORT),
        ((41, 198), (46, 1), errno.EAFNOSUPPORT),
        ((53, 199), (17, 3), errno.EAFNOSUPPORT),
        ((41, 198), (16, 3, 9), errno.EPROTONOSUPPORT),
        ((302, 261), (1, 7, 0x7FFF0000), errno.EPERM),  # limits of init
        ((16, 29), (0, 0x5412), errno.EPERM),
        ((16, 29), (0, 0x541C | 1 << 40), errno.EPERM),
    ],
)
def test_arguments_decide_where_they_must(
    architecture: int, pair: tuple[int, int], arguments: tuple[int, ...], error: int
) -> None:
    number = numbers(pair, architecture)
    assert number is not None
    assert judge(compile_filter(architecture=architecture), architecture, number, *arguments) == (
        error
    )


@pytest.mark.parametrize("foreign", [I386, ARM, X86_64, ARM64])
def test_calls_of_another_architecture_are_as_if_the_kernel_had_none(
    architecture: int, foreign: int
) -> None:
    program = compile_filter(architecture=architecture)
    wanted = ALLOWED if foreign == architecture else errno.ENOSYS
    harmless = 39 if foreign == X86_64 else 172 if foreign == ARM64 else 20  # getpid
    assert judge(program, foreign, harmless) == wanted


def test_numbers_of_x32_are_as_if_the_kernel_had_none() -> None:
    program = compile_filter(architecture=X86_64)
    for number in (39, 101, 512, 519, 547):
        assert judge(program, X86_64, X32 | number) == errno.ENOSYS


def test_files_can_be_locked_and_watched_unless_that_is_refused(architecture: int) -> None:
    program = compile_filter(architecture=architecture)
    without = compile_filter(architecture=architecture, allows_locks=False)
    calls = [(name, numbers(pair, architecture), ()) for name, pair in LOCKS.items()]
    fcntl = numbers(FCNTL, architecture)
    calls += [(name, fcntl, (3, command)) for name, command in SIGNALLING_COMMANDS.items()]
    calls += [("F_SETLK behind high bits", fcntl, (3, 6 | 1 << 32))]
    for name, number, arguments in calls:
        assert number is not None
        assert judge(program, architecture, number, *arguments) == ALLOWED, name
        assert judge(without, architecture, number, *arguments) == errno.ENOSYS, name
    for name, (x86, arm, *others) in NEEDED.items():
        number = x86 if architecture == X86_64 else arm
        assert judge(without, architecture, number, *others) == ALLOWED, name


def test_without_the_library_only_what_asks_for_more_refuses_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seccomp, "LIBRARY", "libof-another-host.so")
    assert filter_of(Config()) is None
    with pytest.raises(SandboxFault, match="libof-another-host"):
        filter_of(Config(sandbox=Sandbox(file_locks="refused")))
