import json
from datetime import UTC, datetime

import pytest

from retort.errors import InvalidRequest
from retort.wire.params import Params
from retort.wire.sessions import (
    DestroyRequest,
    SessionInfo,
    Stats,
    destroy_answer,
    info_answer,
    parse_destroy,
    parse_rename,
)
from retort.wire.slots import Slots
from retort.wire.versions import ApiVersion

WHEN = datetime(2024, 3, 5, 1, 2, 3, 456789, tzinfo=UTC)


@pytest.mark.parametrize(
    ("version", "has_status"),
    [("v2.20170315", False), ("v4.20190614", False), ("v4.20190615", True), ("v7.20230615", True)],
)
def test_stats_have_a_status_from_v4_20190615_on(version, has_status):
    answer = json.loads(destroy_answer(Stats(cpu_used=12), ApiVersion.parse(version)))
    assert answer["stats"]["cpu_used"] == 12
    assert ("status" in answer["stats"]) is has_status
    assert ("version" in answer["stats"]) is has_status
    if not has_status:
        assert all(isinstance(value, int) for value in answer["stats"].values())


def test_stats_that_are_not_known_are_null():
    assert destroy_answer(None, ApiVersion(7, "20230615")) == b'{"stats":null}'


def test_destroy_reads_flags_of_the_query():
    assert parse_destroy(Params()) == DestroyRequest(False, False)
    params = Params(query={"forced": ["true"], "recursive": ["False"]})
    assert parse_destroy(params) == DestroyRequest(True, False)


def test_rename_takes_the_name_from_the_query():
    assert parse_rename(Params(query={"name": ["demo-2"]})) == "demo-2"
    assert parse_rename(Params({"clientSessionToken": "demo-2"})) == "demo-2"
    for query in ({}, {"name": ["x"]}, {"name": ["create"]}, {"name": ["demo-1", "demo-2"]}):
        with pytest.raises(InvalidRequest, match=r"^name: "):
            parse_rename(Params(query=query))


def test_info_is_flat_and_complete():
    info = SessionInfo(
        image="gcc:12",
        status="RUNNING",
        created_at=WHEN,
        age_ms=1500,
        user_id="u1",
        requested=Slots(1.0),
        occupied=Slots(1.0, 268435456),
        environ={"A": "ü"},
        runs=3,
        cpu_used_ms=77,
    )
    answer = json.loads(info_answer(info))
    assert json.loads(answer.pop("environ")) == {"A": "ü"}
    assert json.loads(answer.pop("occupiedSlots")) == {"cpu": "1", "mem": "268435456"}
    assert json.loads(answer.pop("occupyingSlots")) == {"cpu": "1", "mem": "268435456"}
    assert json.loads(answer.pop("requestedSlots")) == {"cpu": "1"}
    assert answer == {
        "domainName": "default",
        "groupId": "default",
        "userId": "u1",
        "lang": "gcc:12",
        "image": "gcc:12",
        "architecture": None,
        "registry": None,
        "tag": None,
        "containerId": "",
        "occupiedShares": "{}",
        "resourceOpts": "{}",
        "status": "RUNNING",
        "statusInfo": None,
        "statusData": None,
        "age": 1500,
        "creationTime": "2024-03-05T01:02:03.456789+00:00",
        "terminationTime": None,
        "numQueriesExecuted": 3,
        "lastStat": None,
        "idleChecks": None,
        "memoryLimit": 262144,
        "cpuCreditUsed": 77,
    }
