"""Calls on a session other than create and execute, and their answers (specification 5.5, 7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from retort.wire.create import parse_name
from retort.wire.params import Params
from retort.wire.slots import Slots
from retort.wire.times import format_time
from retort.wire.versions import STATS_WITH_STATUS_SINCE, ApiVersion

_encode = msgspec.json.Encoder().encode


class ServicePort(msgspec.Struct, frozen=True):
    """A port a session opens (specification 5.10); `protocol` is tcp, http or preopen."""

    name: str
    protocol: str
    ports: tuple[int, ...]


class CreateAnswer(msgspec.Struct, frozen=True):
    """Answer of create with the keys all versions read (specification 7.1)."""

    session_id: str = msgspec.field(name="sessionId")
    session_name: str = msgspec.field(name="sessionName")
    sess_id: str = msgspec.field(name="sessId")
    kernel_id: str = msgspec.field(name="kernelId")  # clients up to v4 put it into URLs
    status: str
    service_ports: tuple[ServicePort, ...] = msgspec.field(name="servicePorts")
    created: bool


def create_answer(
    session_id: str,
    name: str,
    *,
    status: str = "RUNNING",
    service_ports: Iterable[ServicePort] = (),
    is_new: bool = True,
) -> bytes:
    """Answer create; its status is 201 when `is_new`, else 200 (specification 7.1, D22)."""
    ports = tuple(service_ports)
    return _encode(CreateAnswer(session_id, name, name, name, status, ports, is_new))


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """What `GET /session/:id` tells (specification 7.2)."""

    image: str
    status: str
    created_at: datetime
    age_ms: int
    user_id: str
    container_id: str = ""
    domain: str = "default"
    group: str = "default"
    architecture: str | None = None
    registry: str | None = None
    tag: str | None = None
    status_info: str | None = None
    status_data: Mapping[str, Any] | None = None
    terminated_at: datetime | None = None
    requested: Slots = Slots()
    occupied: Slots = Slots()
    environ: Mapping[str, str] | None = None
    resource_opts: Mapping[str, Any] | None = None
    runs: int = 0
    cpu_used_ms: int = 0
    last_stat: Mapping[str, Any] | None = None


def info_answer(info: SessionInfo) -> bytes:
    """Answer info: a flat object, whose objects within are JSON texts (specification 7.2)."""
    occupied = _text(info.occupied.document())
    return _encode(
        {
            "domainName": info.domain,
            "groupId": info.group,
            "userId": info.user_id,
            "lang": info.image,
            "image": info.image,
            "architecture": info.architecture,
            "registry": info.registry,
            "tag": info.tag,
            "containerId": info.container_id,
            "occupiedSlots": occupied,
            "occupyingSlots": occupied,
            "requestedSlots": _text(info.requested.document()),
            "occupiedShares": "{}",
            "environ": _text(info.environ or {}),
            "resourceOpts": _text(info.resource_opts or {}),
            "status": info.status,
            "statusInfo": info.status_info,
            "statusData": info.status_data,
            "age": info.age_ms,
            "creationTime": format_time(info.created_at),
            "terminationTime": _time(info.terminated_at),
            "numQueriesExecuted": info.runs,
            "lastStat": info.last_stat,
            "idleChecks": None,
            "memoryLimit": (info.occupied.memory_bytes or 0) // 1024,
            "cpuCreditUsed": info.cpu_used_ms,
        }
    )


def _text(document: Mapping[str, Any]) -> str:
    return _encode(document).decode()


def _time(when: datetime | None) -> str | None:
    return None if when is None else format_time(when)


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """What a session has used (specification 5.5); `cpu_used` in milliseconds."""

    cpu_used: int = 0
    mem_max_bytes: int = 0
    mem_cur_bytes: int = 0
    net_rx_bytes: int = 0
    net_tx_bytes: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    io_max_scratch_size: int = 0
    io_cur_scratch_size: int = 0


def destroy_answer(stats: Stats | None, version: ApiVersion) -> bytes:
    """Answer destroy (specification 7.3, 5.5).

    Clients from v4.20190615 on take `status` out of the statistics unconditionally; older ones
    apply `int()` to every value, so they must not get it.
    """
    if stats is None:
        return _encode({"stats": None})
    with_status = version >= STATS_WITH_STATUS_SINCE
    head = {"version": 1, "status": "terminated"} if with_status else {}
    return _encode({"stats": head | msgspec.structs.asdict(stats)})


@dataclass(frozen=True, slots=True)
class DestroyRequest:
    """How to destroy a session (specification 7.3)."""

    is_forced: bool = False
    is_recursive: bool = False


def parse_destroy(params: Params) -> DestroyRequest:
    """Read the parameters of destroy."""
    return DestroyRequest(params.boolean("forced"), params.boolean("recursive"))


def parse_rename(params: Params) -> str:
    """Read a session's new name (specification 7.5)."""
    return parse_name(params)


class Match(msgspec.Struct, frozen=True):
    """A session found by a prefix (specification 7.11)."""

    id: str
    name: str
    status: str


def matches_answer(matches: Iterable[Match]) -> bytes:
    """Answer `GET /session/_/match` (specification 7.11)."""
    return _encode({"matches": list(matches)})
