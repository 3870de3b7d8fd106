import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.errors import InvalidRequest, RequestError
from retort.wire.slots import Slots, parse_legacy, parse_slots


@pytest.mark.parametrize(
    ("resources", "document"),
    [
        ({}, {}),
        ({"cpu": 1, "mem": "256m"}, {"cpu": "1", "mem": "268435456"}),
        ({"cpu": "10"}, {"cpu": "10"}),
        ({"cpu": "0.5", "mem": 1048576}, {"cpu": "0.5", "mem": "1048576"}),
        ({"cpu": 2.0, "mem": "1GiB"}, {"cpu": "2", "mem": "1073741824"}),
    ],
)
def test_slots_are_printed_as_strings_in_base_units(resources, document):
    assert parse_slots(resources).document() == document


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cuda.device", 1),
        ("cpu", "x"),
        ("cpu", 0),
        ("cpu", -1),
        ("cpu", "nan"),
        ("cpu", "inf"),
        ("cpu", True),
        ("cpu", None),
        ("cpu", 1e300),
        ("cpu", [1]),
        ("mem", "x"),
        ("mem", 0),
        ("mem", None),
        ("mem", -5),
        ("mem", "9" * 99),
    ],
)
def test_unknown_slots_and_bad_values_are_refused_by_name(name, value):
    with pytest.raises(InvalidRequest, match=rf"^resources\.{name}: "):
        parse_slots({name: value})


def test_legacy_keys_mean_cores_and_mebibytes():
    assert parse_legacy({}) == Slots()
    assert parse_legacy(
        {"instanceCores": 2, "instanceMemory": 512, "instanceGPUs": 0, "instanceTPUs": None}
    ) == Slots(2.0, 512 << 20)
    with pytest.raises(InvalidRequest, match="instanceGPUs"):
        parse_legacy({"instanceGPUs": 0.5})


@given(st.text() | st.floats() | st.integers() | st.none(), st.sampled_from(["cpu", "mem"]))
def test_any_value_is_a_positive_amount_or_refused(value, name):
    try:
        slots = parse_slots({name: value})
    except RequestError:
        return
    assert float(slots.document()[name]) > 0
