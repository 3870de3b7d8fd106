"""Attacks on processes and CPU time (attacks.md, A); each first shown to work on the host."""

# ruff: noqa: ASYNC220, ASYNC221, ASYNC222, ASYNC251 - a test may block

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .box import PRELUDE, PROCESSES, Box, outside, outside_c
from .conftest import NewBox

pytestmark = pytest.mark.slow

MORE = PROCESSES + 100

# Each makes so many, says how many there were, and ends them all.
MULTIPLY = {
    "fork": f"""
made = []
try:
    for _ in range({MORE}):
        pid = os.fork()
        if not pid:
            signal.pause()
            os._exit(0)
        made.append(pid)
except OSError:
    pass
for pid in made:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print(len(made))
sys.exit(7 * (len(made) < {MORE}))
""",
    "thread": f"""
import _thread
door = _thread.allocate_lock()
door.acquire()
made = 0
try:
    for _ in range({MORE}):
        _thread.start_new_thread(door.acquire, ())
        made += 1
except RuntimeError:
    pass
print(made, flush=True)
os._exit(7 * (made < {MORE}))
""",
}
VFORK = f"""
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
static volatile int made; /* each parent waits in vfork for the end of its child */
int main(void) {{
    int status = 0;
    for (;;) {{
        pid_t pid = made < {MORE} ? vfork() : -1;
        if (pid == 0) {{ made++; continue; }}
        if (pid < 0) {{
            char text[16];
            int length = snprintf(text, sizeof(text), "%d\\n", made);
            write(1, text, length);
            _exit(made < {MORE} ? 7 : 0);
        }}
        waitpid(pid, &status, 0);
        _exit(WEXITSTATUS(status));
    }}
}}
"""


async def within_limit(box: Box, attack: str) -> None:
    ended = await (box.c if attack == "vfork" else box.python)(
        VFORK if attack == "vfork" else MULTIPLY[attack]
    )
    assert ended.told == ("pids-limit", 7, None), ended
    assert 10 < int(ended.out) <= PROCESSES


@pytest.mark.parametrize("attack", ["fork", "thread", "vfork"])
async def test_processes_stop_at_the_limit(box: Box, attack: str) -> None:
    box.needs_groups()
    control = outside_c(VFORK) if attack == "vfork" else outside(MULTIPLY[attack])
    assert (control.returncode, control.stdout) == (0, f"{MORE}\n")
    await within_limit(box, attack)


async def test_a_bomb_of_forks_ends_at_its_time_and_others_do_not_feel_it(
    box: Box, new_box: NewBox
) -> None:
    box.needs_groups()  # nothing bounded may stand for it on the host: see the test above
    other = await new_box()
    await box.put(bomb__sh=":(){ :|:& };:\nsleep 100")
    bomb = asyncio.ensure_future(box.sh("bash bomb.sh", limits={"wallSeconds": 3}))
    await asyncio.sleep(1)
    begun = time.monotonic()
    assert (await other.sh("echo calm")).out == "calm\n"
    assert time.monotonic() - begun < 2
    ended = await bomb
    assert (ended.answer["status"], *ended.told) == ("exec-timeout", "timed-out", None, "SIGKILL")
    assert ended.answer["limit"] == "wall"
    assert await box.ps() == 0


# Its parent has ended, it leads a session of its own, and it counts in a file for ever.
DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        {descriptors}
        end = time.monotonic() + 60
        count = 0
        while time.monotonic() < end:
            count += 1
            with open("count.new", "w") as file:
                file.write(f"{{os.getpid()}} {{count}}")
            os.rename("count.new", "count")
            time.sleep(0.005)
    os._exit(0)
os.wait()
while not os.path.exists("count"):
    time.sleep(0.005)
print("main has ended", flush=True)
os._exit(0)
"""
CLOSED = "for fd in (0, 1, 2): os.close(fd)"


def daemon_of_the_host(code: str, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start it outside; give the process and the daemon's pid."""
    with (folder / "out").open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-IS", "-c", PRELUDE + code], cwd=folder, stdout=sink, stderr=sink
        )
        process.wait(30)
    return process, int((folder / "count").read_text().split()[0])


@pytest.mark.parametrize("descriptors", [CLOSED, "pass"], ids=["detached", "holding stdout"])
async def test_a_daemon_is_dead_before_the_result_comes(
    box: Box, tmp_path: Path, descriptors: str
) -> None:
    code = DAEMON.format(descriptors=descriptors)
    _, pid = daemon_of_the_host(code, tmp_path)
    os.kill(pid, 0)  # control: it outlives its parent
    os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    ended = await box.python(code)
    assert (*ended.told, ended.out) == ("exited", 0, None, "main has ended\n")
    assert time.monotonic() - begun < 10  # nor is its end waited for
    counts = [(await box.sh("cat count; sleep 0.1")).out for _ in range(2)]
    assert counts[0] == counts[1]
    assert await box.ps() == 0


STUBBORN = {
    "ignores every signal": "for n in range(1, 65):\n"
    "    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\n",
    "blocks every signal": "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n",
    "stops itself": "os.kill(os.getpid(), signal.SIGSTOP)\n",
    "stops its whole session": "os.fork()\nos.kill(0, signal.SIGSTOP)\n",
    "traps in a shell": "os.execv('/bin/bash', ['bash', '-c', "
    "'trap \"\" HUP INT TERM QUIT; while :; do sleep 0.01; done'])\n",
}


def ignores_term(pid: int) -> bool:
    """Whether a process ignores or blocks SIGTERM, or is stopped and so does not hear of it."""
    lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    masks = int(status["SigIgn"], 16) | int(status["SigBlk"], 16)
    return status["State"].startswith("T") or bool(masks >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("way", STUBBORN)
async def test_whoever_does_not_want_to_end_is_killed_at_the_wall_limit(box: Box, way: str) -> None:
    code = STUBBORN[way] + "time.sleep(1000)\n"
    if "session" not in way:
        control = subprocess.Popen(
            ["/usr/bin/python3", "-IS", "-c", f"import os, signal, time\n{code}"],
            start_new_session=True,
        )
        while not ignores_term(control.pid):
            assert control.poll() is None
            time.sleep(0.01)
        control.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            control.wait(0.2)
        os.killpg(control.pid, signal.SIGKILL)
        control.wait()
    ended = await box.python(code, limits={"wallSeconds": 0.6})
    assert (ended.answer["status"], *ended.told) == ("exec-timeout", "timed-out", None, "SIGKILL")
    assert ended.answer["limit"] == "wall"
    assert await box.ps() == 0


SPIN = """
#include <pthread.h>
#include <stdio.h>
#include <time.h>
static double used(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}
static void *spin(void *limit) {
    while (used(CLOCK_PROCESS_CPUTIME_ID) < *(double *)limit)
        ;
    return NULL;
}
int main(void) {
    double limit = 1.2;
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        pthread_create(&threads[i], NULL, spin, &limit);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    printf("%.2f of %.2f\\n", used(CLOCK_THREAD_CPUTIME_ID), used(CLOCK_PROCESS_CPUTIME_ID));
    return 0;
}
"""


async def test_cpu_time_counts_over_all_threads(box: Box) -> None:
    main, _, everything = outside_c(SPIN).stdout.split()
    assert float(main) < 0.1 < 1 < float(everything)  # control: the main thread seems idle
    ended = await box.c(SPIN, limits={"cpuSeconds": 0.4, "wallSeconds": 30})
    told = (ended.answer["status"], ended.answer["outcome"], ended.answer["limit"])
    if box.walls["cpuTime"] == "rlimit":  # it counts whole seconds, of each process
        assert told[1] == "timed-out"
        return
    assert told == ("exec-timeout", "timed-out", "cpu")
    assert 350_000 < ended.usage["userUs"] + ended.usage["systemUs"] < 1_500_000


async def test_who_sleeps_meets_the_wall_limit_and_not_that_of_cpu_time(box: Box) -> None:
    # Control: a limit of CPU time alone never ends it, as it uses none.
    control = subprocess.Popen(["prlimit", "--cpu=1", "sleep", "1000"])
    try:
        ended = await box.sh("sleep 1000", limits={"cpuSeconds": 0.3, "wallSeconds": 0.8})
    finally:
        control.kill()
        _, status, used = os.wait4(control.pid, 0)
        control.returncode = os.waitstatus_to_exitcode(status)
    assert control.returncode == -signal.SIGKILL  # ours: it was alive after the same time
    assert used.ru_utime + used.ru_stime < 0.3
    assert (ended.answer["outcome"], ended.answer["limit"]) == ("timed-out", "wall")
    assert ended.usage["userUs"] + ended.usage["systemUs"] < 300_000


# Half are the program's own, which it never waits for; half lose their parent and are init's.
ZOMBIES = """
def fork():
    for _ in range(3000):  # reaping may be slower than dying, but comes
        try:
            return os.fork()
        except BlockingIOError:
            time.sleep(0.002)
    os._exit(1)
own, orphans, refused = {own}, {orphans}, 0
for _ in range(own):
    if fork() == 0:
        os._exit(0)
for _ in range(orphans):
    middle = fork()
    if middle == 0:
        fork()
        os._exit(0)
    refused += os.waitpid(middle, 0)[1] != 0
def zombies():
    found = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            found += open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            pass  # reaped meanwhile
    return found
ends_at = time.monotonic() + 20
while zombies() < {lasting} and time.monotonic() < ends_at:
    time.sleep(0.01)  # the last of them may not have got to its end
print(refused, zombies())
"""


async def test_zombies_by_the_thousand_are_reaped(box: Box) -> None:
    orphaned = ZOMBIES.format(own=0, orphans=50, lasting=50).replace(
        "own, orphans", "libc.prctl(36, 1, 0, 0, 0)\nown, orphans", 1
    )  # control: a parent of orphans (PR_SET_CHILD_SUBREAPER) that does not wait keeps them all
    assert int(outside(orphaned).stdout.split()[1]) >= 50
    for _ in range(3):
        ended = await box.python(ZOMBIES.format(own=60, orphans=1000, lasting=60))
        assert ended.told == ("exited", 0, None), ended
        refused, zombies = map(int, ended.out.split())
        assert refused == 0
        assert 60 <= zombies < PROCESSES
    assert await box.ps() == 0


# Each tries something on a process; outside its own child, inside the sandbox's init.
ON_INIT = """
victim = {victim}
import resource
for number in range(1, 65):
    try: os.kill(victim, number)
    except (OSError, ValueError): pass
print("ptrace", call(101, 16, victim, 0, 0))  # PTRACE_ATTACH
print("seize", call(101, 0x4206, victim, 0, 0))
for limit in (resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_AS):
    low = (ctypes.c_ulong * 2)(0, 0)
    print("prlimit", call(302, victim, limit, ctypes.addressof(low), 0))
for path in ("mem", "environ", "fd", "root", "oom_score_adj", "clear_refs", "setgroups"):
    try:
        fd = os.open(f"/proc/{{victim}}/{{path}}", os.O_RDWR if path != "fd" else os.O_RDONLY)
        print("opened", path)
    except OSError as error:
        print(path, error.errno)
"""


async def test_init_takes_no_harm_from_the_programs_it_starts(box: Box) -> None:
    child = "os.fork() or (time.sleep(10), os._exit(0))[0]"
    control = outside(
        ON_INIT.format(victim=child).replace("range(1, 65)", "()") + "os.kill(victim, 9)\n"
    )
    assert "prlimit 0" in control.stdout
    ended = await box.python(ON_INIT.format(victim=1))
    assert ended.told == ("exited", 0, None), ended
    assert "ptrace 1\nseize 1\nprlimit 1\nprlimit 1\nprlimit 1\n" in ended.out
    assert "opened mem" not in ended.out
    assert "opened fd" not in ended.out
    assert "opened environ" not in ended.out
    assert "opened oom_score_adj" not in ended.out  # who goes first when memory is short
    await box.works()


# Not os.kill: it would fail after whoever was there has been reaped.
KILL_ALL = "import ctypes; [ctypes.CDLL(None).kill(-1, n) for n in (15, 1, 2, 9)]; print('alive')"


# Two programs in one pid namespace, as if there were none between them. On the host itself it
# would end the host's programs; so it must not go on where it is not in a namespace of its own.
TOGETHER = f"""
[ $$ = 1 ] || exit 9
sleep 1000 &
python3 -IS -c "{KILL_ALL}"
wait $!
echo $?
"""


async def test_killing_everybody_kills_nobody_else(box: Box, new_box: NewBox) -> None:
    alone = ("bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--as-pid-1", "--die-with-parent")
    control = subprocess.run(
        [*alone, "bash", "-c", TOGETHER], capture_output=True, text=True, timeout=30, check=True
    )
    assert control.stdout == "alive\n143\n"
    other = await new_box()
    victim = asyncio.ensure_future(other.sh("sleep 1; echo survived"))
    ended = await box.sh(f'python3 -IS -c "{KILL_ALL}"; exit 5')
    assert ended.told == ("signalled", 143, "SIGTERM")  # its own shell
    assert (await box.sh("pkill -9 init; pkill -9 retort; exit 5")).told[1] in (5, 137)
    assert (await box.sh("kill -9 -1; kill -STOP -1; exit 5")).told == ("exited", 5, None)
    await box.works()
    assert (await victim).told == ("exited", 0, None)


RAISE = """
import resource
def attempt(name, act):
    try:
        act()
        print(name, "done")
    except (OSError, ValueError) as error:
        print(name, "refused")
for name in ("NPROC", "NOFILE", "STACK", "FSIZE", "CORE", "MEMLOCK"):
    which = getattr(resource, "RLIMIT_" + name)
    hard = resource.getrlimit(which)[1]
    more = hard + 1 if hard != -1 else -1
    attempt(name, lambda: resource.setrlimit(which, (more, more)))
attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
attempt("fifo", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
attempt("oom", lambda: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-900"))
if call(251, 1, 0, 1 << 13 | 4):  # ioprio_set to the real-time class
    print("ioprio refused")
else:
    print("ioprio done")
"""
RAISED = ("NPROC", "NOFILE", "STACK", "FSIZE", "CORE", "MEMLOCK", "nice", "fifo", "oom", "ioprio")


async def test_nobody_raises_limits_or_priority(box: Box) -> None:
    if os.geteuid() == 0:
        assert outside(RAISE).stdout.count("done") >= 6  # control
    ended = await box.python(RAISE)
    has_own_limit = os.geteuid() == 0  # of processes: else the server's user counts them all
    wanted = [f"{name} refused" for name in RAISED if name != "NPROC" or has_own_limit]
    assert [line for line in ended.out.splitlines() if line in wanted] == wanted, ended.out


async def test_more_processors_give_no_more_time(box: Box) -> None:
    box.needs("cpu")
    spin = (
        "os.sched_setaffinity(0, range(os.cpu_count()))\n"
        "for _ in range(3): os.fork()\n"
        "end = time.monotonic() + 1\n"
        "while time.monotonic() < end: pass\n"
        "try:\n"
        "    while True: os.wait()\n"
        "except ChildProcessError: pass\n"
    )
    tell = "print(sum(os.times()[:4]), flush=True)\n"  # the last one is of all together
    used_s = (float(outside(spin + tell).stdout.split()[-1]) for _ in range(5))
    if not any(used > 1.35 for used in used_s):  # control
        print("others need the processors of this host")
    ended = await box.python(spin)
    used = ended.usage["userUs"] + ended.usage["systemUs"]
    assert used < 1.35 * ended.usage["wallUs"]  # one CPU, by quota
