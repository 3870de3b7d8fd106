"""The default commands of the host's images, in real sandboxes, with hostile file names."""

from __future__ import annotations

import json

import pytest

from retort.core.image import Image, ImageKind, ImageRef

from .conftest import Box, Ran

C = Image(ImageRef("gcc"), ImageKind.C)
CPP = Image(ImageRef("cpp"), ImageKind.CPP)
PYTHON = Image(ImageRef("python"), ImageKind.PYTHON)
BASH = Image(ImageRef("bash"), ImageKind.BASH)

NASTY = [
    "a b.c",
    "-rf.c",
    "@file.c",
    "quote'\".c",
    "new\nline.c",
    "$(touch owned).c",
    "`touch owned`;.c",
    "*.c",
    "-o main.c",
    "sub dir/-x @y.c",
    "\\.c",
    "#&|<>.c",
    "ünï.c",
]


async def put(box: Box, files: dict[str, str]) -> None:
    """Write files below the home."""
    text = (
        "import json, os, sys\n"
        "for name, data in json.loads(sys.argv[1]).items():\n"
        "    os.makedirs(os.path.dirname(name) or '.', exist_ok=True)\n"
        "    open(name, 'w').write(data)\n"
    )
    done = await box.run("/usr/bin/python3", "-c", text, json.dumps(files))
    assert done.code == 0, done.err


async def step(box: Box, command: str | None) -> Ran:
    assert command is not None
    return await box.run("/bin/bash", "-c", command)


async def test_c_sources_with_nasty_names_become_one_program(start) -> None:
    box = await start()
    files = {name: f"int f{n}(void) {{ return 1; }}\n" for n, name in enumerate(NASTY)}
    calls = "+".join(f"f{n}()" for n in range(len(NASTY)))
    declared = "".join(f"int f{n}(void);" for n in range(len(NASTY)))
    files["main.c"] = (
        f'#include <stdio.h>\n{declared}int main(void) {{ printf("%d\\n", {calls}); return 3; }}'
    )
    await put(box, files)
    done = await step(box, C.build)
    assert (done.code, done.out, done.err) == (0, "", "")
    done = await step(box, C.exec)
    assert (done.code, done.out) == (3, f"{len(NASTY)}\n")
    assert (await box.sh("test -e owned")).code == 1


async def test_c_includes_resolve_from_the_home_and_from_beside(start) -> None:
    box = await start()
    await put(
        box,
        {
            "main.c": '#include "dir/x.h"\n#include <math.h>\n#include <stdlib.h>\n'
            "int main(int n, char **v) { return (int)pow(2 * n, X) + y(); }",
            "dir/x.h": "#define X 3\nint y(void);",
            "dir/y.c": '#include "x.h"\nint y(void) { return X; }',
        },
    )
    done = await step(box, C.build)
    assert (done.code, done.err) == (0, "")
    assert (await step(box, C.exec)).code == 11


async def test_warnings_are_shown_and_threads_and_libraries_linked(start) -> None:
    box = await start()
    await put(
        box,
        {
            "m.c": "#include <pthread.h>\n#include <dlfcn.h>\n"
            "#include <time.h>\n#include <math.h>\n"
            "static void *f(void *p) { return p; }\n"
            "int main(int n, char **v) { int unused; pthread_t t; struct timespec s;\n"
            "clock_gettime(CLOCK_REALTIME, &s); dlopen(0, RTLD_NOW);\n"
            "return pthread_create(&t, 0, f, 0) || pthread_join(t, 0) || sqrt(n) < 0; }"
        },
    )
    done = await step(box, C.build)
    assert done.code == 0
    assert "unused" in done.err
    assert (await step(box, C.exec)).code == 0


async def test_a_compile_error_is_the_compilers_exit_code(start) -> None:
    box = await start()
    await put(box, {"main.c": "int main(void) { return }"})
    done = await step(box, C.build)
    assert done.code == 1
    assert "main.c:1:" in done.err


@pytest.mark.parametrize("image", [C, CPP])
async def test_no_source_is_127_with_a_message(start, image: Image) -> None:
    box = await start()
    await put(box, {"readme.txt": "", ".hidden/x.c": "int main;", ".y.c": "int main;"})
    await box.sh("mkdir folder.c; mkfifo pipe.c; ln -s nowhere dangling.c")
    done = await step(box, image.build)
    assert done.code == 127
    assert "there is no" in done.err
    done = await step(box, image.exec)
    assert done.code == 127
    assert done.err == "there is no ./main and no ./a.out to run\n"


async def test_a_out_is_run_when_there_is_no_main(start) -> None:
    box = await start()
    await box.sh("mkdir main; printf '#!/bin/sh\\necho from a.out' >a.out; chmod +x a.out")
    assert (await step(box, C.exec)).out == "from a.out\n"


@pytest.mark.parametrize("image", [C, CPP])
@pytest.mark.parametrize("name", ["x.cpp", "x.cc", "-s/@x.cxx"])
async def test_cpp_sources_are_built_by_both_images(start, image: Image, name: str) -> None:
    box = await start()
    await put(box, {name: "#include <iostream>\nint main() { std::cout << 42 << std::endl; }"})
    done = await step(box, image.build)
    assert (done.code, done.err) == (0, "")
    assert (await step(box, image.exec)).out == "42\n"


async def test_a_c_image_takes_the_c_files_and_a_cpp_image_the_others(start) -> None:
    files = {
        "a.c": '#include <stdio.h>\nint main(void) { puts("c"); }',
        "a.cpp": '#include <cstdio>\nint main() { std::puts("c++"); }',
    }
    for image, expected in ((C, "c\n"), (CPP, "c++\n")):
        box = await start()
        await put(box, files)
        assert (await step(box, image.build)).code == 0
        assert (await step(box, image.exec)).out == expected


@pytest.mark.parametrize("image", [C, CPP, PYTHON, BASH])
async def test_a_makefile_builds_and_cleans_every_image(start, image: Image) -> None:
    box = await start()
    assert (await step(box, image.clean)).code == 0  # nothing to do without one
    await put(
        box, {"Makefile": "all:\n\t@echo built >made\nclean:\n\t@rm made; exit 3\n", "x.c": "?"}
    )
    assert (await step(box, image.build)).code == 0
    assert (await box.sh("cat made")).out == "built\n"
    assert (await step(box, image.clean)).code == 2
    assert (await box.sh("cat made")).code == 1


async def test_a_program_replaces_its_shell_so_that_its_signal_is_seen(start) -> None:
    box = await start()
    await put(box, {"main.c": "#include <signal.h>\nint main(void) { return raise(SIGUSR1); }"})
    await step(box, C.build)
    assert (await step(box, C.exec)).code == -10


async def test_a_session_that_breaks_path_still_builds(start) -> None:
    box = await start()
    await put(box, {"main.c": "int main(void) { return 5; }"})
    for path in ("", "/nowhere"):
        done = await box.run("/usr/bin/env", f"PATH={path}", "/bin/bash", "-c", str(C.build))
        assert (done.code, done.err) == (0, "")


async def test_python_runs_main_py_and_builds_nothing(start) -> None:
    box = await start()
    await put(box, {"main.py": "import sys; print('hi', __file__); sys.exit(4)"})
    assert (await step(box, PYTHON.build)) == Ran(0, "", "")
    done = await step(box, PYTHON.exec)
    assert (done.code, done.out) == (4, "hi /home/work/main.py\n")


@pytest.mark.slow
async def test_setup_py_is_installed_editable_for_the_user(start) -> None:
    box = await start()
    await put(
        box,
        {
            "setup.py": "from setuptools import setup\nsetup(name='mine', py_modules=['mine'])",
            "mine.py": "value = 7",
            "elsewhere/main.py": "import mine; print(mine.value)",
        },
    )
    done = await step(box, PYTHON.build)
    assert done.code == 0, done.out + done.err
    assert (await box.sh("cd elsewhere && python3 main.py")).out == "7\n"
    # Of another length: Python tells a file of the same second and length from no other.
    await put(box, {"mine.py": "value = 88"})
    assert (await box.sh("cd elsewhere && python3 -B main.py")).out == "88\n"


async def test_bash_runs_main_sh(start) -> None:
    box = await start()
    await put(box, {"main.sh": "echo $0; exit 6"})
    assert (await step(box, BASH.build)) == Ran(0, "", "")
    done = await step(box, BASH.exec)
    assert (done.code, done.out) == (6, "main.sh\n")


@pytest.mark.parametrize(("image", "name"), [(PYTHON, "main.py"), (BASH, "main.sh")])
async def test_a_missing_script_is_127_with_a_message(start, image: Image, name: str) -> None:
    done = await step(await start(), image.exec)
    assert (done.code, done.err) == (127, f"there is no {name}\n")


@pytest.mark.parametrize(
    ("image", "code", "expected"),
    [
        (C, '#include <stdio.h>\nint main(void) { puts("\\"q\\""); return 2; }', (2, '"q"\n')),
        (C, "int main(", (1, "")),
        (CPP, "#include <iostream>\nint main() { std::cout << 1; }", (0, "1")),
        (PYTHON, "print('x')\nraise SystemExit(3)", (0, "x\n")),
        (BASH, "echo $((1+1)); exit 3", (0, "2\n")),
    ],
)
async def test_query_text_is_run_as_a_program(start, image, code, expected) -> None:
    done = await (await start()).run(*image.query_argv(code))
    assert (done.code, done.out) == expected
