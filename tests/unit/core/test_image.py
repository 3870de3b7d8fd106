"""Image references, the catalogue and the environment of commands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.core.image import Catalogue, Image, ImageKind, ImageLimits, ImageRef, environment
from retort.errors import ImageNotFound, InvalidRequest


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("gcc", ImageRef("gcc", "latest")),
        ("gcc:12-debian", ImageRef("gcc", "12-debian")),
        ("c++", ImageRef("c++", "latest")),
        ("stable/python:3.11", ImageRef("python", "3.11", "stable")),
        ("example.org:5000/a/b/gcc", ImageRef("gcc", "latest", "example.org:5000/a/b")),
        ("localhost:80/x:y", ImageRef("x", "y", "localhost:80")),
    ],
)
def test_a_reference_is_read_and_written_back(text: str, ref: ImageRef) -> None:
    assert ImageRef.parse(text) == ref
    assert ImageRef.parse(str(ref)) == ref


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ":", "gcc:", ":12", "/gcc", "a//b", "../etc", "gcc:1:2", "-gcc", "gcc:-1"),
        *("gcc\n", "g cc", "gcc;ls", "gç", "a" * 256, "gcc:" + "1" * 129, "gcc@sha256:00"),
        *("a\0b", "١"),
    ],
)
def test_a_malformed_reference_is_refused_by_field(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ImageRef.parse(text)
    assert list(caught.value.data) == ["image"]


@given(st.text(max_size=300))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        ref = ImageRef.parse(text)
    except InvalidRequest:
        return
    assert ImageRef.parse(str(ref)) == ref


GCC = Image(ImageRef("gcc", "12-debian"), ImageKind.C, ("c", "gcc:latest", "gcc:12"))
PYTHON = Image(ImageRef("python", "3.11-debian"), ImageKind.PYTHON, ("python", "c"))
CATALOGUE = Catalogue([GCC, PYTHON])


@pytest.mark.parametrize("text", ["gcc:12-debian", "gcc", "gcc:latest", "gcc:12", "c", "c:latest"])
def test_an_image_is_found_by_its_name_and_every_alias(text: str) -> None:
    assert CATALOGUE.resolve(text) is GCC


def test_a_full_name_resolves_to_itself() -> None:
    assert CATALOGUE.resolve(str(PYTHON.ref)) is PYTHON
    assert CATALOGUE.images == (GCC, PYTHON)


@pytest.mark.parametrize("text", ["gcc:11", "nope", "elsewhere/gcc", "GCC"])
def test_an_unknown_image_is_not_found(text: str) -> None:
    with pytest.raises(ImageNotFound, match="No such environment image"):
        CATALOGUE.resolve(text)


def test_the_environment_is_that_of_the_specification() -> None:
    made = environment({})
    assert made["HOME"] == "/home/work"
    assert (made["USER"], made["SHELL"], made["LANG"]) == ("work", "/bin/bash", "C.UTF-8")
    assert made["TERM"] == "xterm"
    assert made["PATH"].split(":")[0] == "/home/work/.local/bin"


def test_the_sessions_own_variables_win() -> None:
    made = environment({"HOME": "/tmp", "MINE": "1"})
    assert (made["HOME"], made["MINE"]) == ("/tmp", "1")


@pytest.mark.parametrize("kind", ImageKind)
def test_every_kind_has_all_commands(kind: ImageKind) -> None:
    image = Image(ImageRef("x"), kind)
    assert image.clean
    assert image.build
    assert image.exec
    argv = image.query_argv("code")
    assert argv is not None
    assert argv[-1] == "code"


def test_an_operators_alias_takes_a_name() -> None:
    gcc = Image(ImageRef.parse("gcc:12"), ImageKind.C, ("c",))
    bash = Image(ImageRef.parse("bash:5"), ImageKind.BASH, ("shell",))
    catalogue = Catalogue([gcc, bash], {"c": "shell", "mine": "gcc:12"})
    assert catalogue.resolve("c") is bash
    assert catalogue.resolve("mine") is gcc
    with pytest.raises(ImageNotFound):
        Catalogue([gcc], {"x": "nothing"})


# --- limits ---------------------------------------------------------------------------------------


def test_an_operator_writes_what_an_image_gets() -> None:
    written = "cpu=0.5 mem=256m  wall_s=1m30s cpu_s=10"
    assert ImageLimits.parse(written) == ImageLimits(0.5, 256 * 2**20, 90.0, 10.0)
    assert ImageLimits.parse("mem=1g") == ImageLimits(memory_bytes=2**30)
    assert ImageLimits.parse("") == ImageLimits()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("memory=1g", "'memory' is none of cpu, mem, wall_s, cpu_s"),
        ("cpu", "cpu could not"),
        ("cpu=0", "cpu must be above 0"),
        ("cpu=inf", "cpu must be above 0"),
        ("cpu=nan", "cpu must be above 0"),
        ("mem=lots", "mem must be a number of bytes"),
        ("mem=0", "mem must be above 0"),
        ("cpu=1,mem=1g", "cpu could not"),
        ("wall_s=-1", "wall_s must be a duration"),
    ],
)
def test_what_is_no_limit_is_told_by_name(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ImageLimits.parse(text)


def test_limits_are_an_images_whatever_name_it_is_limited_and_found_by() -> None:
    images = (Image(ImageRef.parse("gcc:12"), ImageKind.C, ("c",)),
              Image(ImageRef.parse("bash:5"), ImageKind.BASH))  # fmt: skip
    catalogue = Catalogue(images, {"mine": "c"}, {"c": ImageLimits(cpus=0.5)})
    for name in ("gcc:12", "c", "mine"):
        assert catalogue.resolve(name).limits == ImageLimits(cpus=0.5)
    assert catalogue.resolve("bash:5").limits == ImageLimits()
    assert [image.limits.cpus for image in catalogue.images] == [0.5, None]
    with pytest.raises(ImageNotFound):
        Catalogue(images, limits={"ruby": ImageLimits()})


def test_limits_beyond_the_server_are_cut_and_none_is_added() -> None:
    limits = ImageLimits(cpus=8.0, wall_s=3.0)
    assert limits.within(cpus=2.0, memory_bytes=100) == ImageLimits(cpus=2.0, wall_s=3.0)
    assert ImageLimits(memory_bytes=200).within(cpus=2.0, memory_bytes=100).memory_bytes == 100
