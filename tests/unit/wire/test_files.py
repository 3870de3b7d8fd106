import json
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.core.files import FileEntry
from retort.errors import InvalidRequest, RequestError, TooManyFiles
from retort.wire.files import (
    TarParts,
    listing_answer,
    parse_download,
    parse_download_single,
    parse_listing,
    upload_name,
)
from retort.wire.params import Params


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('form-data; name="src"; filename="main.c"', "main.c"),
        ('form-data; name="src"; filename="src%2Fmain.c"', "src/main.c"),
        ('form-data; name="src"; filename="/home/work/a"', "/home/work/a"),
        ('form-data; name="src"; filename="%2Fhome%2Fwork%2Fa"', "/home/work/a"),
        ('form-data; name="src"; filename="..%2F..%2Fetc%2Fpasswd"', "../../etc/passwd"),
        ('form-data; name="src"; filename="%C3%A4%E2%82%AC.c"', "ä€.c"),
        ('form-data; name="src"; filename="100%.txt"', "100%.txt"),
        ('form-data; name="src"; filename="%252F"', "%2F"),
        ('form-data; name="src"; filename="a\\"b;c\\\\d"', 'a"b;c\\d'),
        ("form-data; name=src; filename=main.c", "main.c"),
        ("form-data;name=src;filename=main.c;", "main.c"),
        ('form-data; FileName = "x" ; name="filename=y"', "x"),
        ('form-data; filename="a\nb"', "a\nb"),
        ('form-data; filename="-rf"', "-rf"),
        ("form-data; filename*=UTF-8''na%C3%AFve%2F.c", "naïve/.c"),
        ("form-data; filename=\"plain\"; filename*=utf-8'en'%e2%82%ac", "€"),
        ("form-data; filename*=iso-8859-1''%e9; filename=other", "é"),
        ("form-data; filename*=UTF-8''%2541", "%41"),
        (b'form-data; filename="\xc3\xa4"', "ä"),
    ],
)
def test_file_names(disposition, name):
    assert upload_name(disposition) == name


def test_stray_bytes_stay_the_bytes_of_the_path():
    name = upload_name(b'form-data; filename="a\xff%2Fb"')
    assert name.encode("utf-8", "surrogateescape") == b"a\xff/b"


@pytest.mark.parametrize(
    "disposition",
    [
        None,
        "",
        "form-data",
        'form-data; name="src"',
        'form-data; name="src; filename=x"',
        'form-data; filename=""',
        "form-data; filename=",
        'form-data; filename="a%00b"',
        'form-data; filename="a\0b"',
        "form-data; filename*=UTF-8''%00",
        "form-data; filename*=UTF-8''",
        "form-data; filename*=UTF-8''%ff",
        "form-data; filename*=UTF-16''%00a",
        "form-data; filename*=rot13''abc",
        "form-data; filename*=plain; filename=good",
        'form-data; filename="unended',
        'form-data; filename="x"y',
        'form-data; filename="a"; filename="b"',
        "form-data; =x; filename=a",
        'form-data; filename="' + "x" * 4097 + '"',
    ],
)
def test_impossible_file_names_are_refused(disposition):
    with pytest.raises(InvalidRequest, match=r"^filename: "):
        upload_name(disposition)


@given(st.binary() | st.text(st.characters()))
def test_any_disposition_is_a_name_or_refused(text):
    mark = text[:0]
    for head, tail in [("", ""), ('form-data; filename="', '"'), ("form-data; filename*=", "")]:
        header = (
            head.encode() + text + tail.encode() if isinstance(mark, bytes) else head + text + tail
        )
        try:
            name = upload_name(header)
        except RequestError:
            continue
        assert name
        assert "\0" not in name


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_name_comes_back_from_full_escaping(name):
    escaped = "".join(f"%{byte:02X}" for byte in name.encode())
    assert upload_name(f'form-data; name="src"; filename="{escaped}"') == name
    assert upload_name(f"form-data; filename*=utf-8''{escaped}") == name


def entry(name=b"main.c", mode=stat.S_IFREG | 0o644):
    return FileEntry(name, mode, 74, 1709600523.4, 1709600523.5, 1709600523.6)


def test_listings_are_json_within_json():
    entries = [
        entry(),
        entry(b"d", stat.S_IFDIR | 0o1777),
        entry(b"l", stat.S_IFLNK | 0o777),
        entry(b"\xff\"\n'\\-rf"),
    ]
    answer = json.loads(listing_answer(entries, "/home/work/x"))
    files = json.loads(answer.pop("files"))
    assert answer == {"errors": "", "folder_path": "/home/work/x", "abspath": "/home/work/x"}
    assert [file["mode"] for file in files] == [
        "-rw-r--r--",
        "drwxrwxrwt",
        "lrwxrwxrwx",
        "-rw-r--r--",
    ]
    assert files[3]["filename"] == "\ufffd\"\n'\\-rf"
    assert files[0] == {
        "mode": "-rw-r--r--",
        "size": 74,
        "ctime": 1709600523.4,
        "mtime": 1709600523.5,
        "atime": 1709600523.6,
        "filename": "main.c",
    }


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
def test_every_entry_of_a_large_listing_is_there_once_and_in_order(count):
    names = [f'"{number}\\ö'.encode() for number in range(count)]
    answer = json.loads(listing_answer([entry(name) for name in names], "/home/work"))
    assert [file["filename"].encode() for file in json.loads(answer["files"])] == names


def test_a_cut_listing_says_so():
    assert json.loads(listing_answer([], "/home/work", is_truncated=True))["truncated"] is True


@given(st.binary(), st.text(st.characters()))
def test_any_name_and_folder_can_be_listed(name, folder):
    answer = json.loads(listing_answer([entry(name)], folder))
    assert json.loads(answer["files"])[0]["filename"] == name.decode("utf-8", "replace")


def test_the_path_to_list_has_a_default():
    assert parse_listing(Params()) == "/home/work"
    assert parse_listing(Params({"path": ""})) == "/home/work"
    assert parse_listing(Params(query={"path": ["sub"]})) == "sub"
    for path in (5, ["a"], "a\0", "a" * 4097):
        with pytest.raises(InvalidRequest, match=r"^path: "):
            parse_listing(Params({"path": path}))


def test_one_to_five_files_may_be_downloaded():
    assert parse_download(Params({"files": ["a", "b/c"]})) == ("a", "b/c")
    assert parse_download(Params(query={"files": ["a"]})) == ("a",)
    assert len(parse_download(Params({"files": ["a"] * 5}))) == 5
    with pytest.raises(TooManyFiles, match=r"^Too many files$"):
        parse_download(Params({"files": ["a"] * 6}))
    for files in (None, [], "a", [1], [""], ["a\0"], {"a": 1}):
        with pytest.raises(InvalidRequest, match=r"^files: "):
            parse_download(Params({"files": files}))


def test_a_single_download_needs_its_file():
    assert parse_download_single(Params(query={"file": ["a"]})) == "a"
    for file in (None, "", 5, ["a"], "\0"):
        with pytest.raises(InvalidRequest, match=r"^file: "):
            parse_download_single(Params({"file": file}))


def test_the_length_of_a_download_is_known_beforehand():
    parts = TarParts("b0")
    tars = [b"x" * 10240, b"", b"yy"]
    body = b"".join(parts.head(len(tar)) + tar + parts.TAIL for tar in tars) + parts.closing
    assert parts.total([10240, 0, 2]) == len(body)
    assert parts.content_type == "multipart/mixed; boundary=b0"


@pytest.mark.parametrize("boundary", ["", "a b", "a\r\n", 'a"', "x" * 71])
def test_a_bad_boundary_is_a_bug(boundary):
    with pytest.raises(ValueError, match="not a boundary"):
        TarParts(boundary)
