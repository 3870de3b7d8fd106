from __future__ import annotations

from typing import Any

import pytest

from retort.errors import InvalidRequest, NotPermitted, StoreFault
from retort.wire.graphql import Query, execute, page

ITEMS = [{"name": name, "host": "h", "cloneable": name == "b"} for name in ("b", "a", "c")]


async def one_page(_info: Any, **given: Any) -> dict[str, Any]:
    return page(ITEMS, given["limit"], given["offset"], given.get("filter"), given.get("order"))


async def ask(source: str, **variables: Any) -> dict[str, Any]:
    return await execute(Query(source, variables, None), {"vfolder_list": one_page})


async def test_keys_come_in_the_order_of_the_query() -> None:
    answer = await ask(
        "query($limit: Int!, $offset: Int!) { vfolder_list(limit: $limit, offset: $offset) "
        "{ items { name host name } total_count } }",
        limit=1,
        offset=1,
    )
    assert answer == {
        "data": {"vfolder_list": {"items": [{"name": "a", "host": "h"}], "total_count": 3}}
    }
    assert list(answer["data"]["vfolder_list"]["items"][0]) == ["name", "host"]


@pytest.mark.parametrize("source", ["{", "{ nothing }", "{ vfolder_list { items { name } } }"])
async def test_what_is_no_query_is_an_error_in_the_answer(source: str) -> None:
    answer = await ask(source)
    assert answer["data"] is None
    assert answer["errors"][0]["message"]


async def test_a_query_is_not_endless() -> None:
    answer = await ask("{" + " keypair { user_id }" * 1000 + "}")
    assert "2000 tokens" in answer["errors"][0]["message"]


async def test_what_a_root_refuses_is_an_error_and_what_broke_is_raised() -> None:
    async def refuses(_info: Any) -> None:
        raise NotPermitted("Not for you")

    async def breaks(_info: Any) -> None:
        raise StoreFault

    query = Query("{ keypair { user_id } }", {}, None)
    answer = await execute(query, {"keypair": refuses})
    assert answer["data"] == {"keypair": None}
    assert answer["errors"][0]["message"] == "Not for you"
    assert answer["errors"][0]["path"] == ["keypair"]
    with pytest.raises(StoreFault):
        await execute(query, {"keypair": breaks})


@pytest.mark.parametrize(
    ("condition", "order", "names"),
    [
        (None, None, "bac"),
        (None, "name", "abc"),
        (None, "-name", "cba"),
        (None, "host,-name", "cba"),
        ('name == "a"', None, "a"),
        ('name != "a" & cloneable == false', None, "c"),
        ('name contains "b"', None, "b"),
        ("", "", "bac"),
    ],
)
def test_pages_are_filtered_and_ordered(
    condition: str | None, order: str | None, names: str
) -> None:
    found = page(ITEMS, 10, 0, condition, order)
    assert "".join(item["name"] for item in found["items"]) == names
    assert found["total_count"] == len(names)


@pytest.mark.parametrize(
    ("limit", "offset", "condition", "order"),
    [(-1, 0, "", ""), (1001, 0, "", ""), (1, -1, "", ""), (1, 0, "name ~ 1", ""), (1, 0, "", "x")],
)
def test_pages_that_make_no_sense(limit: int, offset: int, condition: str, order: str) -> None:
    with pytest.raises(InvalidRequest):
        page(ITEMS, limit, offset, condition, order)
