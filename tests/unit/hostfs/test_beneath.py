"""The lexical rules of paths, and what errors mean."""

from __future__ import annotations

import errno
import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.errors import FileNotFound, FileTooLarge, PathRefused, SandboxFault, ScratchFull
from retort.hostfs.beneath import BeneathPath, refusal, session_path


@pytest.mark.parametrize(
    ("text", "relative"),
    [
        ("main.c", b"main.c"),
        ("./a//b/", b"a/b"),
        ("a/./b/../c", b"a/c"),
        ("/home/work/a", b"a"),
        ("//home///work//a", b"a"),
        ("../work/a", b"a"),
        ("/home/work/../work/a", b"a"),
        ("../../home/work/a", b"a"),
        ("/../../home/work/a", b"a"),
        ("a\\..\\b", b"a\\..\\b"),
        ("%2e%2e%2fa", b"%2e%2e%2fa"),
        ("\u2024\u2024/\uff0e\uff0e/a\u2215b", "\u2024\u2024/\uff0e\uff0e/a\u2215b".encode()),
        ("...", b"..."),
        ("-rf", b"-rf"),
        ("~/x", b"~/x"),
        ("new\nline", b"new\nline"),
        ("\udcff\udc80", b"\xff\x80"),
        ("x" * 255, b"x" * 255),
    ],
)
def test_a_path_below_home_is_normalised(text: str, relative: bytes) -> None:
    assert bytes(session_path(text)) == relative


@pytest.mark.parametrize(
    "text",
    [
        "",
        "..",
        "../x",
        "a/../../x",
        "/",
        "/etc/passwd",
        "/home",
        "/home/workshop/x",
        "/home/work/../x",
        "/home/work/../../../etc/passwd",
        "a\0b",
        "\ud800",
        "x" * 256,
        "a/" * 2047 + "bc",
        ".",
        "/home/work",
        "/home/work/",
        "a/..",
    ],
)
def test_a_path_not_strictly_below_home_is_refused(text: str) -> None:
    with pytest.raises(PathRefused):
        session_path(text)


def test_home_itself_is_allowed_where_it_may_be() -> None:
    home = session_path(".", may_be_home=True)
    assert (bytes(home), home.absolute, home.name) == (b".", "/home/work", b"work")


def test_the_longest_path_passes_and_one_byte_more_is_refused() -> None:
    longest = "a/" * 2047 + "b"
    assert len(bytes(session_path(longest))) == 4095
    with pytest.raises(PathRefused):
        session_path(longest + "c")


pieces = st.sampled_from(
    ["..", ".", "", "home", "work", "a", "b\\", "..a", "\udcfe", "é", "-", " "]
)
paths = st.one_of(
    st.text(max_size=60),
    st.lists(pieces, max_size=14).map("/".join),
    st.lists(pieces, max_size=14).map(lambda parts: "/home/work/" + "/".join(parts)),
)


@given(paths)
def test_no_path_keeps_a_way_out(text: str) -> None:
    try:
        path = session_path(text, may_be_home=True)
    except PathRefused:
        return
    relative = bytes(path)
    assert not relative.startswith(b"/")
    assert b".." not in relative.split(b"/")
    assert b"\0" not in relative
    assert posixpath.normpath(path.absolute) == path.absolute
    assert path.absolute == "/home/work" or path.absolute.startswith("/home/work/")


@given(paths)
def test_a_normalised_path_reads_as_itself(text: str) -> None:
    try:
        path = session_path(text, may_be_home=True)
    except PathRefused:
        return
    assert session_path(path.absolute, may_be_home=True) == path


@given(paths)
def test_an_accepted_path_is_what_the_kernel_would_make_of_it(text: str) -> None:
    try:
        path = session_path(text)
    except PathRefused:
        return
    joined = posixpath.normpath(posixpath.join("/home/work", text))
    assert path.absolute == "/" + joined.lstrip("/")


def test_parents_are_listed_from_the_top() -> None:
    path = BeneathPath((b"a", b"b", b"c"))
    assert [bytes(parent) for parent in path.parents()] == [b"a", b"a/b"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ELOOP, PathRefused),
        (errno.EXDEV, PathRefused),
        (errno.EACCES, PathRefused),
        (errno.EAGAIN, PathRefused),
        (errno.ENOENT, PathRefused),
        (errno.ENOSPC, ScratchFull),
        (errno.EDQUOT, ScratchFull),
        (errno.EFBIG, FileTooLarge),
        (errno.EIO, SandboxFault),
        (errno.EMFILE, SandboxFault),
    ],
)
def test_an_errno_becomes_the_error_that_says_whose_it_is(code: int, expected: type) -> None:
    error = refusal(OSError(code, "x"), BeneathPath((b"a",)))
    assert type(error) is expected


def test_a_missing_name_is_the_error_that_was_asked_for() -> None:
    error = refusal(FileNotFoundError(errno.ENOENT, "x"), BeneathPath((b"a",)), FileNotFound)
    assert type(error) is FileNotFound
