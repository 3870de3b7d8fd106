from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.core.console import Console, Stream

OUT, ERR = Stream.STDOUT, Stream.STDERR
chunks = st.lists(st.tuples(st.sampled_from(Stream), st.binary(max_size=12)), max_size=12)


def texts(items: tuple[tuple[str, str], ...], stream: Stream) -> str:
    return "".join(text for name, text in items if name == stream.value)


@settings(derandomize=True, max_examples=60)
@given(chunks, st.integers(0, 20))
def test_an_answer_is_the_decoded_streams_cut_at_the_cap(
    fed: list[tuple[Stream, bytes]], cap: int
) -> None:
    console = Console(cap)
    for stream, data in fed:
        console.feed(stream, data)
    console.end_phase()
    items = console.take()
    cut = 0
    for stream in Stream:
        whole = b"".join(data for name, data in fed if name is stream).decode("utf-8", "replace")
        assert texts(items, stream) == whole[:cap]
        cut += max(0, len(whole) - cap)
    assert console.cut_chars == cut
    assert all(text for _, text in items)
    assert all(one[0] != other[0] for one, other in itertools.pairwise(items))
    assert console.is_empty
    assert console.take() == ()


@settings(derandomize=True, max_examples=60)
@given(st.text(max_size=8), st.data())
def test_however_it_is_cut_text_arrives_whole(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    places = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    console = Console(1000)
    for start, end in itertools.pairwise([0, *places, len(raw)]):
        console.feed(OUT, raw[start:end])
        console.feed(ERR, b".")
    assert texts(console.take(), OUT) == text


@pytest.mark.parametrize("character", ["é", "世", "🜍"])
def test_a_character_split_at_every_place_survives_an_answer_between(character: str) -> None:
    raw = character.encode()
    for place in range(1, len(raw)):
        console = Console(10)
        console.feed(OUT, b"a" + raw[:place])
        assert console.take() == (("stdout", "a"),)
        console.feed(OUT, raw[place:] + b"b")
        assert console.take() == (("stdout", character + "b"),)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xff", "�"),
        (b"a\x80b", "a�b"),
        (b"\xc0\xaf", "��"),
        (b"\xed\xa0\x80", "���"),  # half of a surrogate pair is no character
        (b"\0\x1b[31m\x7f", "\0\x1b[31m\x7f"),
        (b"\xf4\x90\x80\x80", "����"),
    ],
)
def test_invalid_bytes_are_replaced_and_control_characters_kept(data: bytes, text: str) -> None:
    console = Console(100)
    console.feed(OUT, data)
    console.end_phase()
    assert console.take() == (("stdout", text),)


def test_half_a_character_ends_with_its_phase_and_stream() -> None:
    console = Console(100)
    console.feed(OUT, b"\xe4\xb8")
    console.feed(ERR, b"\x96")
    console.end_phase()
    console.feed(OUT, b"\x96")
    console.end_phase()
    assert console.take() == (("stderr", "�"), ("stdout", "��"))


def test_what_is_cut_is_counted_and_never_delayed() -> None:
    console = Console(3)
    console.feed(OUT, b"abcdef")
    console.feed(ERR, b"xy")
    assert console.take() == (("stdout", "abc"), ("stderr", "xy"))
    console.feed(OUT, b"g")
    assert console.take() == (("stdout", "g"),)
    assert console.cut_chars == 3


def test_the_cap_counts_characters_not_bytes() -> None:
    console = Console(2)
    console.feed(OUT, "🜍世é".encode())
    assert console.take() == (("stdout", "🜍世"),)


@settings(derandomize=True, max_examples=60)
@given(chunks, chunks, st.integers(1, 20))
def test_what_was_not_delivered_comes_before_what_is_new(
    before: list[tuple[Stream, bytes]], after: list[tuple[Stream, bytes]], cap: int
) -> None:
    once, twice = Console(cap), Console(cap)
    for stream, data in before:
        once.feed(stream, data)
        twice.feed(stream, data)
    twice.put_back(twice.take())
    for stream, data in after:
        once.feed(stream, data)
        twice.feed(stream, data)
    assert twice.take() == once.take()


def test_putting_back_never_exceeds_the_cap() -> None:
    console = Console(4)
    console.feed(OUT, b"abcd")
    taken = console.take()
    console.feed(OUT, b"efgh")
    console.put_back(taken)
    assert console.take() == (("stdout", "abcd"),)
    assert console.cut_chars == 4


def test_memory_views_are_taken_too() -> None:
    console = Console(4)
    console.feed(OUT, memoryview(b"ab"))
    console.feed(OUT, bytearray(b"c"))
    assert console.take() == (("stdout", "abc"),)
