"""Attacks through the build step (attacks.md, G): the compiler is hostile code like any other."""

# ruff: noqa: ASYNC220, ASYNC221, ASYNC240 - a test may block

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import execute, printed, run_to_end

from .box import MIB, Box, outside_sh
from .conftest import NewBox

pytestmark = pytest.mark.slow

ENDLESS = '#include "/dev/zero"\nint main(void) { return 0; }\n'
RANDOM = '#include "/dev/urandom"\nint main(void) { return 0; }\n'
TERMINAL = '#include "/dev/stdin"\nint main(void) { return 0; }\n'
MACROS = (
    "#define A(x) x x x x x x x x x x\n"
    + "".join(
        f"#define A{n}(x) A{n - 1 if n else ''}(A{n - 1 if n else ''}(x))\n" for n in range(6)
    )
    + "int main(void) { A5(;) return 0; }\n"
)
TEMPLATES = (
    "template <int N, int M> struct T\n"
    "{ enum { v = T<N - 1, 2 * M>::v + T<N - 1, 2 * M + 1>::v }; };\n"
    "template <int M> struct T<0, M> { enum { v = 1 }; };\n"
    "int main() { return T<26, 1>::v; }\n"
)


def compiles_for(seconds: float, source: str, language: str, folder: Path) -> bool:
    """Whether a compiler on the host, with a bound of memory, is busy for so long."""
    (folder / "source").write_text(source)
    try:
        subprocess.run(
            ["prlimit", "--as=600000000", "g++", "-x", language, "-c", "source", "-o", "o"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return True  # or it ran out of memory
    return False


@pytest.mark.parametrize(
    ("name", "source"),
    [("zero.c", ENDLESS), ("random.c", RANDOM), ("macros.c", MACROS), ("bomb.cpp", TEMPLATES)],
)
async def test_a_build_without_end_has_its_verdict_in_time(
    box: Box, tmp_path: Path, name: str, source: str
) -> None:
    box.needs_groups()  # else such a build has the host's memory
    assert compiles_for(1.0, source, "c" if name.endswith(".c") else "c++", tmp_path)
    await box.put_named({name: source})
    begun = time.monotonic()
    ended = await box.sh("true", build="*", limits={"wallSeconds": 2})
    assert time.monotonic() - begun < 10
    if ended.answer["status"] == "exec-timeout":
        assert (ended.answer["outcome"], ended.answer["limit"]) == ("timed-out", "wall")
    else:  # the compiler gave up before, by itself or for want of memory
        assert ended.answer["exitCode"] == 127
        assert ended.answer["outcome"] in ("exited", "out-of-memory"), ended


async def test_an_include_of_standard_input_ends_at_once(box: Box) -> None:
    await box.put_named({"main.c": TERMINAL})
    ended = await box.sh("exec ./main", build="*", limits={"wallSeconds": 20})
    assert ended.told == ("exited", 0, None), ended


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/root/.bashrc", "/proc/1/environ", "/var/lib/retort/retort.db"]
)
async def test_an_include_shows_nothing_of_the_host(box: Box, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("root:*:0\n")
    (tmp_path / "main.c").write_text(f'#include "{tmp_path}/secret"\n')
    control = subprocess.run(
        ["gcc", "-c", "main.c"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "root:" in control.stderr, "control: a compiler shows what it may read"
    await box.put_named({"main.c": f'#include "{path}"\nint main(void) {{ return 0; }}\n'})
    ended = await box.sh("true", build="*")
    assert ended.told == ("exited", 127, None), ended
    text = ended.out + ended.err
    assert "No such file" in text or "Permission denied" in text, text
    assert "root:" not in text
    assert "SECRET" not in text
    # What there is in /etc is ours.
    await box.put_named({"main.c": '#include "/etc/passwd"\nint main(void) { return 0; }\n'})
    ended = await box.sh("true", build="*")
    host = [line.split(":")[0] for line in Path("/etc/passwd").read_text().splitlines()]
    ours = (await box.sh("cut -d: -f1 /etc/passwd")).out.split()
    assert [name for name in host if name not in ours and f"{name}:x" in ended.err] == []


CHEAT = "while :; do echo cheat >main.out; sleep 0.01; done"
MAKEFILE = """all:
\trm -rf {places} 2>/dev/null; true
\tln -s /etc/shadow stolen; ln -s / root; ln -s ../../../../etc up
\t(setsid sh -c '{daemon}' </dev/null >/dev/null 2>&1 &)
\tprintf 'int main(void) {{ return 0; }}' | gcc -x c -o main -
clean:
\trm -rf $(HOME)/.??* main
"""


def make_outside(home: Path) -> None:
    """Control: in a home of the host it deletes, plants a link that opens, and leaves a daemon."""
    # Nowhere else; and should this test be ended, the daemon ends by itself.
    bounded = CHEAT.replace("while :", "echo $$$$ >pid; for n in $$(seq 2000)")
    (home / "build").mkdir()
    (home / "mine.txt").write_text("lost")
    (home / "build/Makefile").write_text(MAKEFILE.format(places=f"{home}/*.txt", daemon=bounded))
    subprocess.run(["make"], cwd=home / "build", env=os.environ | {"HOME": str(home)}, check=True)
    ends_at, out = time.monotonic() + 20, home / "build/main.out"
    pid = 0
    try:
        while not pid or not out.exists() or out.read_text() != "cheat\n":
            assert time.monotonic() < ends_at
            written = home / "build/pid"
            pid = int((written.exists() and written.read_text()) or 0)
            time.sleep(0.01)
        out.unlink()  # and it goes on, long after make has ended
        while not out.exists():
            assert time.monotonic() < ends_at
            time.sleep(0.01)
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
    assert not (home / "mine.txt").exists()
    assert (home / "build/root/etc/passwd").read_bytes() == Path("/etc/passwd").read_bytes()


async def test_a_hostile_makefile_stays_in_its_session_and_its_daemons_end(
    box: Box, new_box: NewBox, tmp_path: Path
) -> None:
    make_outside(tmp_path)
    other = await new_box()
    await other.put(mine__txt="kept")
    await box.put(Makefile=MAKEFILE.format(places="$(HOME)/* /tmp/* /", daemon=CHEAT))
    ended = await box.sh("echo right >main.out; sleep 0.3; cat main.out", build="*", clean="*")
    assert ended.told == ("exited", 0, None)
    assert ended.out.endswith("right\n"), ended  # no daemon of the build was there to change it
    assert (await other.sh("cat mine.txt")).out == "kept"
    body = {"files": ["stolen"]}
    async with box.api.get(f"/session/{box.name}/download", json=body) as answer:
        assert answer.status == 400
        assert "root:" not in await answer.text()
    assert os.path.exists("/etc/passwd")  # noqa: PTH110
    assert await box.ps() == 0


NAMES = [
    "-o evil.c",
    "--version.c",
    "-fplugin=x.c",
    "@file.c",
    "a;touch pwned;.c",
    "`touch pwned`.c",
    "$(touch pwned).c",
    "a b\tc.c",
    "'quote\".c",
    "*.c",
    "new\nline.c",
    "&& touch pwned #.c",
]


async def test_names_of_sources_are_names_and_nothing_else(box: Box, tmp_path: Path) -> None:
    naive = f"gcc -c {NAMES[4]}"
    subprocess.run(["/bin/bash", "-c", naive], cwd=tmp_path, capture_output=True, check=False)
    assert (tmp_path / "pwned").exists(), "control: a name that is not quoted is a command"
    made = "import os\n" + "".join(
        f"open({name!r}, 'w').write('int f{n}(void) {{ return {n}; }}')\n"
        for n, name in enumerate(NAMES)
    )
    await box.put(main__c="int f3(void);\nint main(void) { return f3() + 40; }\n")
    assert (await box.python(made)).told == ("exited", 0, None)
    ended = await box.sh("./main; echo $?; ls pwned evil* 2>/dev/null; true", build="*")
    assert ended.out == "43\n", ended  # all of them are in it, under their own names
    # As uploads they are names too.
    uploaded = [name for name in NAMES if "\n" not in name and "\t" not in name]
    await box.put_named({f"up/{name}": f"int g{n};" for n, name in enumerate(uploaded)})
    ended = await box.sh("./main; echo $?; ls pwned evil* 2>/dev/null; ls up | wc -l", build="*")
    assert ended.out == f"43\n{len(uploaded)}\n", ended


async def test_a_flood_of_build_output_is_cut_and_counted(box: Box, tmp_path: Path) -> None:
    flood = "yes 'warning: ü' | head -c 64M >&2"
    assert len(outside_sh(flood, tmp_path).stderr) == 64 * MIB  # control: who reads all, has all
    answers = await run_to_end(box.api, box.name, build=flood, exec="echo fine")
    built = next(a for a in answers if a["status"] == "build-finished")
    assert (built["outcome"], built["exitCode"]) == ("exited", 0)
    assert built["usage"]["cutChars"] > 0
    assert len(printed(answers, "stderr")) < 20 * MIB
    assert printed(answers) == "fine\n"


async def test_binary_build_output_is_text_with_marks(box: Box, tmp_path: Path) -> None:
    build = "for n in {1..500}; do printf 'a\\xc3'; printf '\\xa9\\xff\\x00'; done"
    wanted = "aé\ufffd\0" * 500
    # Control: read in pieces that end in the middle of a character, and decoded one by one.
    sent = outside_sh(build, tmp_path).stdout
    pieces = [sent[at : at + 64] for at in range(0, len(sent), 64)]
    assert sent.decode("utf-8", "replace") == wanted
    assert "".join(piece.decode("utf-8", "replace") for piece in pieces) != wanted
    answers = await run_to_end(box.api, box.name, build=build, exec="true")
    assert printed(answers) == wanted


FIRST = "gcc -o main main.c; touch built; for n in {1..100}; do [ -e replaced ] || sleep 0.01; done"
REPLACE = (
    "for n in {1..500}; do [ -e built ] || sleep 0.01; done; cp /bin/true main; touch replaced"
)
PRINTS = '#include <stdio.h>\nint main(void) { puts("first"); }\n'


async def test_a_program_is_not_replaced_by_a_run_that_was_started_during_its_build(
    box: Box, tmp_path: Path
) -> None:
    (tmp_path / "main.c").write_text(PRINTS)
    with subprocess.Popen(["/bin/bash", "-c", REPLACE], cwd=tmp_path) as beside:
        done = outside_sh(f"{FIRST}; ./main", tmp_path)
        assert beside.wait(30) == 0
    assert (done.returncode, done.stdout) == (0, b"")  # control: what ran is not what was built
    await box.put(main__c=PRINTS)
    first = await execute(
        box.api, box.name, mode="batch", code="", runId="one",
        options={"build": FIRST, "exec": "./main"},
    )  # fmt: skip
    second = await execute(
        box.api, box.name, mode="batch", code="", runId="two",
        options={"build": None, "exec": f"{REPLACE}; ./main"},
    )  # fmt: skip
    answers = [first]
    while answers[-1]["status"] != "finished":
        answers.append(await execute(box.api, box.name, mode="continue", code="", runId="one"))
    assert (printed(answers), answers[-1]["exitCode"]) == ("first\n", 0)
    answers = [second]
    # Runs of a session come one after the other, so that the first had its own program.
    while answers[-1]["status"] != "finished":
        answers.append(await execute(box.api, box.name, mode="continue", code="", runId="two"))
    assert (printed(answers), answers[-1]["exitCode"]) == ("", 0)
