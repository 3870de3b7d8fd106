import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.wire.percent import decode_valid, printable, to_bytes


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("src%2Fmain.c", "src/main.c"),
        ("%C3%A4", "ä"),
        ("%c3%a4", "ä"),
        ("100%", "100%"),
        ("%zz", "%zz"),
        ("%4", "%4"),
        ("%41%FF%42", "A%FFB"),
        ("%ff", "%ff"),
        ("%C3%A4%Fe%e2%82%ac%80", "ä%Fe€%80"),
        ("%E2%82", "%E2%82"),
        ("%F0%9F%98%80", "😀"),
        ("%C0%AF", "%C0%AF"),
        ("%ED%A0%80", "%ED%A0%80"),
        ("%2541", "%41"),
        ("%25%34%31", "%41"),
        ("%00", "\0"),
        ("", ""),
    ],
)
def test_only_escapes_that_form_utf8_are_decoded_and_once(text, decoded):
    assert decode_valid(text) == decoded


@given(st.binary())
def test_any_valid_text_survives_full_escaping(raw):
    text = raw.decode("utf-8", "ignore")
    escaped = "".join(f"%{byte:02X}" for byte in text.encode())
    assert decode_valid(escaped) == text


@given(st.binary())
def test_printable_is_always_utf8(raw):
    text = raw.decode("utf-8", "surrogateescape")
    assert to_bytes(text) == raw
    assert printable(text) == raw.decode("utf-8", "replace")


@given(st.text(st.characters()))
def test_printable_takes_surrogates_nobody_made(text):
    printable(text + "\ud800").encode()
