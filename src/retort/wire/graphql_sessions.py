"""Sessions as GraphQL has them (specification 8): a session has one container, which is itself."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec

from retort.core.limits import Usage
from retort.core.session import Session, SessionStatus
from retort.core.vfolder import DEFAULT_GROUP
from retort.errors import InvalidRequest
from retort.wire.slots import Slots
from retort.wire.times import format_time

SCHEMA = """
type ComputeSessionList { items: [ComputeSession]!, total_count: Int! }
type ComputeSession { id: UUID, session_id: UUID, main_kernel_id: UUID, tag: String, name: String,
  type: String, image: String, architecture: String, registry: String, cluster_template: String,
  cluster_mode: String, cluster_size: Int, domain_name: String, group_name: String, group_id: UUID,
  user_email: String, user_id: UUID, access_key: String, created_user_email: String,
  created_user_id: UUID, status: String, status_changed: DateTime, status_info: String,
  status_data: JSONString, status_history: JSONString, created_at: DateTime,
  terminated_at: DateTime, starts_at: DateTime, scheduled_at: DateTime, startup_command: String,
  result: String, abusing_reports: [JSONString], idle_checks: JSONString, agent_ids: [String],
  resource_opts: JSONString, scaling_group: String, service_ports: JSONString, mounts: [String],
  occupying_slots: JSONString, occupied_slots: JSONString, num_queries: BigInt,
  containers: [ComputeContainer], dependencies: [ComputeSession] }
type ComputeContainer { id: UUID, idx: Int, role: String, hostname: String, cluster_role: String,
  cluster_idx: Int, cluster_hostname: String, local_rank: Int, session_id: UUID, image: String,
  architecture: String, registry: String, status: String, status_changed: DateTime,
  status_info: String, status_data: JSONString, created_at: DateTime, terminated_at: DateTime,
  agent: String, container_id: String, resource_opts: JSONString, occupied_slots: JSONString,
  live_stat: JSONString, last_stat: JSONString, preopen_ports: [Int] }
"""

#: States of the protocol that no session here is ever in; clients ask for them all the same.
_OTHERS = frozenset({"PULLING", "SCHEDULED", "RUNNING_DEGRADED", "RESIZING", "SUSPENDED"})


def parse_statuses(text: str | None) -> list[SessionStatus] | None:
    """Read a list of states joined by commas; None: any. Raises InvalidRequest."""
    if not text:
        return None
    names = {name.strip().upper() for name in text.split(",")} - {""}
    if unknown := names - _OTHERS - {status.value for status in SessionStatus}:
        raise InvalidRequest.field("status", f"{min(unknown)[:64]} is no state of a session")
    return [status for status in SessionStatus if status.value in names]


def session(found: Session, email: str | None, used: Usage | None = None) -> dict[str, Any]:
    """Give a session as the schema has it.

    Args:
        email: its owner's.
        used: what a live one has used so far; None: not asked for.
    """
    slots = _text(Slots(found.limits.cpus, found.limits.memory_bytes).document())
    ended_at = None if found.terminated_at is None else format_time(found.terminated_at)
    created_at = format_time(found.created_at)
    same: dict[str, Any] = {  # of the session and of its container
        "session_id": str(found.id),
        "image": found.image,
        "architecture": None,
        "registry": None,
        "status": found.status.value,
        "status_changed": _changed(found.history) or created_at,
        "status_info": found.reason or None,
        "status_data": None,
        "created_at": created_at,
        "terminated_at": ended_at,
        "resource_opts": "{}",
        "occupied_slots": slots,
    }
    container: dict[str, Any] = same | {
        "id": str(found.id),
        "idx": 0,
        "role": "main",
        "hostname": "main1",
        "cluster_role": "main",
        "cluster_idx": 1,
        "cluster_hostname": "main1",
        "local_rank": 0,
        "agent": "local",
        "container_id": str(found.id),
        "live_stat": None if used is None else _text(_stat(used)),
        "last_stat": None if ended_at is None else _text(_stat(found.usage)),
        "preopen_ports": [],
    }
    return same | {
        "id": str(found.id),
        "main_kernel_id": str(found.id),
        "tag": found.tag,
        "name": found.name,
        "type": "INTERACTIVE",
        "cluster_template": None,
        "cluster_mode": "SINGLE_NODE",
        "cluster_size": 1,
        "domain_name": "default",
        "group_name": "default",
        "group_id": str(DEFAULT_GROUP),
        "user_email": email,
        "user_id": str(found.user_id),
        "access_key": found.owner,
        "created_user_email": email,
        "created_user_id": str(found.user_id),
        "status_history": _text({name.upper(): at for name, at in found.history}),
        "starts_at": None,
        "scheduled_at": created_at,
        "startup_command": None,
        "result": "UNDEFINED",
        "abusing_reports": [],
        "idle_checks": None,
        "agent_ids": ["local"],
        "scaling_group": "default",
        "service_ports": "[]",
        "mounts": [mount.name for mount in found.mounts],
        "occupying_slots": slots,
        "num_queries": found.num_queries,
        "containers": [container],
        "dependencies": [],
    }


def _changed(history: Sequence[tuple[str, str]]) -> str | None:
    return format_time(dt.datetime.fromisoformat(history[-1][1])) if history else None


def _stat(used: Usage) -> dict[str, Any]:
    return {
        "cpu_used": (used.user_us + used.system_us) // 1000,
        "mem": used.memory_peak_bytes or used.max_rss_bytes,
        "io_read": used.read_bytes,
        "io_write": used.written_bytes,
    }


def _text(document: Any) -> str:
    return msgspec.json.encode(document).decode()
