"""protocol.py and protocol.h say the same, number by number and offset by offset."""

from __future__ import annotations

import enum
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from retort.sandbox import protocol

HEADER = Path(__file__).parents[3] / "init" / "protocol.h"
ENUMS = {
    "type": (protocol.Type, ""),
    "phase": (protocol.Phase, "PHASE_"),
    "state": (protocol.State, "STATE_"),
    "exec_flags": (protocol.ExecFlags, "EXEC_"),
    "scope": (protocol.Scope, "SCOPE_"),
    "features": (protocol.Features, "FEATURE_"),
}
CONSTANTS = {
    "PROTOCOL_VERSION": protocol.VERSION,
    **{
        name: getattr(protocol, name)
        for name in ("MESSAGE_MAX", "ANSWER_MAX", "STEPS_MAX", "LIMITS_MAX", "TAG_MAX",
                     "STRINGS_MAX", "PATH_MAX", "DEPTH_MAX", "HELD_MAX")
    },
}  # fmt: skip


def python_layouts() -> dict[str, struct.Struct]:
    return {
        name.lower(): value
        for name, value in vars(protocol).items()
        if isinstance(value, struct.Struct)
    }


def python_offsets(layout: struct.Struct) -> list[tuple[int, int]]:
    """Return (offset, size) of each field."""
    offsets, at = [], 0
    for count, code in re.findall(r"(\d*)([A-Za-z])", layout.format):
        for _ in range(int(count or 1)):
            size = struct.calcsize("=" + code)
            offsets.append((at, size))
            at += size
    return offsets


def c_fields(text: str) -> dict[str, list[str]]:
    """Return the flattened member names of every struct of the header."""
    structs: dict[str, list[str]] = {}
    for name, body in re.findall(r"^struct retort_(\w+) \{\n(.*?)^\};", text, re.M | re.S):
        members = []
        for kind, member in re.findall(r"^\t([\w ]+?) (\w+);", body, re.M):
            if inner := re.fullmatch(r"struct retort_(\w+)", kind):
                members += [f"{member}.{field}" for field in structs[inner[1]]]
            else:
                members.append(member)
        structs[name] = members
    return structs


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Everything the compiler knows about the header, by name."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    text = HEADER.read_text()
    lines = [
        f'printf("{n} %lld\\n", (long long){n});'
        for n in re.findall(r"^\t(RETORT_\w+) =", text, re.M)
    ]
    lines += [
        f'printf("{n} %lld\\n", (long long){n});'
        for n in re.findall(r"^#define (RETORT_\w+) \d", text, re.M)
    ]
    for name, members in c_fields(text).items():
        lines.append(f'printf("{name} %zu", sizeof(struct retort_{name}));')
        lines += [
            f'printf(" %zu %zu", offsetof(struct retort_{name}, {member}),'
            f" sizeof(((struct retort_{name} *)0)->{member}));"
            for member in members
        ]
        lines.append('puts("");')
    folder = tmp_path_factory.mktemp("layout")
    source = folder / "layout.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\n'
        "int main(void)\n{\n" + "\n".join(lines) + "\n}\n"
    )
    program = folder / "layout"
    subprocess.run([compiler, "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {
        words[0]: [int(word) for word in words[1:]] for words in map(str.split, output.splitlines())
    }


def test_every_layout_is_the_compilers(compiled: dict[str, list[int]]) -> None:
    structs = {name: numbers for name, numbers in compiled.items() if name.islower()}
    layouts = python_layouts()
    assert set(structs) == set(layouts)
    for name, layout in layouts.items():
        size, *flat = structs[name]
        assert size == layout.size, name
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        assert pairs == python_offsets(layout), name


def test_every_number_is_the_compilers(compiled: dict[str, list[int]]) -> None:
    mirrored = {f"RETORT_{name}": value for name, value in CONSTANTS.items()}
    for members, prefix in ENUMS.values():
        assert issubclass(members, enum.IntEnum | enum.IntFlag)
        mirrored |= {f"RETORT_{prefix}{member.name}": int(member) for member in members}
    assert mirrored == {name: numbers[0] for name, numbers in compiled.items() if name.isupper()}


def test_no_layout_has_implicit_padding(compiled: dict[str, list[int]]) -> None:
    for name, layout in python_layouts().items():
        assert struct.Struct("@" + layout.format.lstrip("=")).size == layout.size, name
        assert compiled[name][0] % 8 == 0, name


def test_every_message_has_a_type_and_a_layout() -> None:
    layouts = python_layouts()
    assert {member.name.lower() for member in protocol.Type} <= set(layouts)
