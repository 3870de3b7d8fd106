"""Resource slots: how much of the host a session asks for or has (specification 5.9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from retort.errors import InvalidRequest
from retort.units import parse_bytes

#: What `GET /config/resource-slots` answers.
SLOT_TYPES: Mapping[str, str] = {"cpu": "count", "mem": "bytes"}

_LARGEST_COUNT = 1_000_000
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Slots:
    """CPUs and memory; None where the request leaves it to the image or the server."""

    cpu: float | None = None
    memory_bytes: int | None = None

    def document(self) -> dict[str, str]:
        """Give the slots as the wire has them: strings in base units."""
        slots = {}
        if self.cpu is not None:
            slots["cpu"] = f"{Decimal(str(self.cpu)).normalize():f}"
        if self.memory_bytes is not None:
            slots["mem"] = str(self.memory_bytes)
        return slots


def parse_slots(resources: Mapping[str, Any], where: str = "resources.") -> Slots:
    """Read a `resources` object.

    Raises:
        InvalidRequest: an unknown slot, or a value that is no positive amount.
    """
    for name in resources:
        if name not in SLOT_TYPES:
            raise InvalidRequest.field(where + name, "is not a resource slot of this server")
    return Slots(
        _count(resources["cpu"], where + "cpu") if "cpu" in resources else None,
        _bytes(resources["mem"], where + "mem") if "mem" in resources else None,
    )


def parse_legacy(config: Mapping[str, Any]) -> Slots:
    """Read the `instance...` keys of clients before v4.20190315 (specification 5.8)."""
    for name in ("instanceGPUs", "instanceTPUs"):
        if config.get(name):
            raise InvalidRequest.field(f"config.{name}", "is not a resource of this server")
    cores, memory = config.get("instanceCores"), config.get("instanceMemory")
    mebibytes = None if memory is None else _count(memory, "config.instanceMemory")
    return Slots(
        None if cores is None else _count(cores, "config.instanceCores"),
        None if mebibytes is None else int(mebibytes * _MIB),
    )


def _count(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidRequest.field(name, "must be a number")
    try:
        count = Decimal(str(value).strip())
    except InvalidOperation:
        raise InvalidRequest.field(name, "must be a number") from None
    if not count.is_finite() or not 0 < count <= _LARGEST_COUNT:
        raise InvalidRequest.field(name, f"must be more than 0 and at most {_LARGEST_COUNT}")
    return float(count)


def _bytes(value: Any, name: str) -> int:
    try:
        size = parse_bytes(value)
    except ValueError as exc:
        raise InvalidRequest.field(name, str(exc)) from None
    if size == 0:
        raise InvalidRequest.field(name, "must be more than 0")
    return size
