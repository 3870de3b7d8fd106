"""The messages of retort-init: numbers and layouts, nothing else.

A mirror of ``init/protocol.h``, which documents every field; a test compiles that header and
compares. ``docs/init-protocol.md`` says what the messages mean.
"""

from __future__ import annotations

import enum
import struct

VERSION = 2
MESSAGE_MAX = 65536  # bytes of one request, all included
ANSWER_MAX = 16384  # bytes of one answer or event
STEPS_MAX = 16  # steps running, or ended and not released
LIMITS_MAX = 16  # resource limits of one EXEC
TAG_MAX = 8192  # bytes of a step's tag
STRINGS_MAX = 4096  # argv entries of one EXEC; as many for envp
PATH_MAX = 4096  # bytes of a path, its NUL included
DEPTH_MAX = 256  # components of a MKDIRS path
HELD_MAX = 3  # descriptors that init keeps for a step


class Type(enum.IntEnum):
    """What a datagram is."""

    HELLO = 1
    PREPARE = 2
    EXEC = 3
    RELEASE = 4
    DROP = 5
    LIST = 6
    KILL = 7
    WAITING = 8
    OPEN = 9
    MKDIRS = 10
    LINK = 11
    RENAME = 12
    UNLINK = 13
    FEED = 14
    WELCOME = 65
    PREPARED = 66
    STARTED = 67
    DONE = 68
    FAILED = 69
    STEP = 70
    INPUT = 71
    OPENED = 72
    EXITED = 129


class Phase(enum.IntEnum):
    """Where a request failed."""

    PROTOCOL = 1  #: the message makes no sense, or came before HELLO
    STEP = 2  #: no such step, number in use, too many, still ending
    STANDBY = 3  #: the standby child is gone; nothing of the step ran, so it may be tried again
    FORK = 4  #: no standby child could be made
    STDIO = 5
    SESSION = 6  #: the controlling terminal
    RLIMIT = 7
    CWD = 8
    EXEC = 9
    OPEN = 10
    MKDIRS = 11
    LINK = 12
    RENAME = 13
    UNLINK = 14
    KILL = 15
    SEND = 16  #: done, but its descriptors could not be sent
    FILTER = 17  #: the system call filter could not be loaded
    FEED = 18  #: nobody reads the step's input any more, or it has none


class State(enum.IntEnum):
    """A step's life as LIST tells it."""

    STARTING = 1  #: its child has not reached execve yet
    RUNNING = 2
    ENDING = 3  #: its main process ended, what it left is being killed
    ENDED = 4  #: everything is dead; waits for RELEASE


class ExecFlags(enum.IntFlag):
    """How a step is run."""

    KEEP_BACKGROUND = 1  #: leave alone what outlives the main process
    TTY = 2  #: stdin is a terminal: make it the controlling one


class Scope(enum.IntEnum):
    """Whom a KILL reaches."""

    MAIN = 1  #: the main process
    GROUP = 2  #: its process group
    EVERYTHING = 3  #: every process of the sandbox but init


class Features(enum.IntFlag):
    """What this init could set up."""

    PID1 = 1  #: it is pid 1 of its own pid namespace
    OPENAT2 = 2  #: paths are resolved by openat2(2), not by the fallback
    FILTER = 4  #: programs run under a system call filter


# Layouts: "=" is host order without implicit padding. The first two fields of all are the header,
# {type, id}; their names stand in the same order in the header file, which the test relies on.
HEADER = struct.Struct("=II")

HELLO = struct.Struct("=IIII")  # version, reserved
PREPARE = struct.Struct("=IIII")  # flags, reserved
EXEC = struct.Struct("=IIQIiIIII")  # number, flags, standby, limits, tag, argv, envp (counts)
LIMIT = struct.Struct("=IIQQ")  # resource, reserved, soft, hard
RELEASE = struct.Struct("=IIQ")  # number
DROP = struct.Struct("=IIQII")  # number, mask, reserved
LIST = struct.Struct("=IIII")  # index, reserved
KILL = struct.Struct("=IIQiI")  # number, signal, scope
WAITING = struct.Struct("=IIQ")  # number
FEED = struct.Struct("=IIQ")  # number
FEED_MAX = MESSAGE_MAX - FEED.size  # bytes of input in one FEED
OPEN = struct.Struct("=IIIIQ")  # flags, mode, resolve
MKDIRS = struct.Struct("=IIIIQ")  # mode, reserved, resolve
LINK = struct.Struct("=IIQ")  # resolve
RENAME = struct.Struct("=IIIIQ")  # flags, reserved, resolve
UNLINK = struct.Struct("=IIIIQ")  # flags, reserved, resolve

WELCOME = struct.Struct("=IIIIII")  # version, running, unreleased, features
PREPARED = struct.Struct("=IIiI")  # pid, reserved
STARTED = struct.Struct("=IIQiI")  # number, pid, reserved
DONE = struct.Struct("=IIII")  # count, reserved
FAILED = struct.Struct("=IIIi")  # phase, error
STEP = struct.Struct("=IIQIiiIII9QQQQ")  # number, state, pid, wait_status, flags, held_mask,
#                                         tag_length, usage, started_ns, ended_ns, fed
INPUT = struct.Struct("=IIII")  # waiting, reserved
OPENED = struct.Struct("=II")
EXITED = struct.Struct("=IIQiI9QQQ")  # number, wait_status, reserved, usage, started_ns, ended_ns
USAGE = struct.Struct("=9Q")  # user_us, system_us, max_rss_kib, minor_faults, major_faults,
#                               in_blocks, out_blocks, voluntary and involuntary switches
