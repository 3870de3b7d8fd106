import pytest

from retort.errors import RouteNotFound, UnsupportedVersion
from retort.wire.versions import KNOWN, ApiVersion, document, effective, root_document


@pytest.mark.parametrize("text", ["v2.20170315", "v7.20230615", "v9.99999999"])
def test_well_formed_versions_are_read_and_printed_alike(text):
    assert str(ApiVersion.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v1.20170315",
        "v10.20230615",
        "7.20230615",
        "v7",
        "v7.2023061",
        "v7.202306150",
        "V7.20230615",
        " v7.20230615",
        "v7.20230615\n",
        "v7.٢٠٢٣٠٦١٥",
        "v7.2023-6-1",
    ],
)
def test_other_versions_are_unsupported(text):
    with pytest.raises(UnsupportedVersion, match=r"^Unsupported API version\.$"):
        ApiVersion.parse(text)


def test_versions_are_ordered_by_number_then_date():
    texts = ["v3.20990101", "v4.20181215", "v4.20190615", "v7.20230615"]
    assert sorted(map(ApiVersion.parse, reversed(texts))) == [*map(ApiVersion.parse, texts)]


def test_root_document_has_what_the_clients_read():
    assert root_document("1.2") == {
        "version": "v7.20230615",
        "manager": "23.09.10",
        "server": "retort/1.2",
    }


def test_each_known_version_has_a_document():
    documents = [document(number)["version"] for number in range(2, 8)]
    assert documents == [
        "v2.20170315",
        "v3.20170615",
        "v4.20190615",
        "v5.20191215",
        "v6.20230315",
        "v7.20230615",
    ]


@pytest.mark.parametrize("number", [0, 1, 8, 9, 70])
def test_unknown_versions_have_no_document(number):
    with pytest.raises(RouteNotFound) as caught:
        document(number)
    assert caught.value.data == f"/v{number}"


def test_the_header_wins_over_the_prefix_over_v5():
    header = ApiVersion.parse("v4.20181215")
    assert effective(header, 2) == header
    assert effective(None, 2) == KNOWN[2]
    assert effective(None, None) == ApiVersion(5, "20191215")
