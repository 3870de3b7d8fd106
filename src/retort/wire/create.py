"""Requests that create a session: POST /session (specification 7.1, 5.8, 5.9)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from retort.errors import InvalidRequest
from retort.wire.params import Params
from retort.wire.slots import Slots, parse_legacy, parse_slots
from retort.wire.times import parse_time

_NAME = re.compile(r"(?=.{4,64}\Z)[A-Za-z0-9_][A-Za-z0-9_.-]*[A-Za-z0-9_]")
_RESERVED = frozenset({"create", "from-template"})
_LONGEST_IMAGE = 512
_LONGEST_COMMAND = 65_536  #: characters; a longer line belongs into a file
_PORTS = range(1024, 65536)
_NAME_KEYS = ("name", "session_name", "clientSessionToken")


class SessionType(Enum):
    """What a session is for; the value is on the wire."""

    INTERACTIVE = "interactive"  #: runs what each call brings
    BATCH = "batch"  #: runs its startup command, then ends


@dataclass(frozen=True, slots=True)
class CreationConfig:
    """`config` of create (specification 5.8), with defaults in place of null."""

    mounts: tuple[str, ...]
    mount_map: Mapping[str, str]
    environ: Mapping[str, str]
    slots: Slots
    resource_opts: Mapping[str, Any]
    scaling_group: str | None
    preopen_ports: tuple[int, ...]
    agent_list: tuple[str, ...]  #: only super-administrators may give any


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """A valid request to get or create a session (specification 7.1)."""

    name: str | None  #: None: the server draws one
    image: str
    architecture: str | None
    session_type: SessionType
    group: str
    domain: str
    config: CreationConfig
    tag: str | None
    is_enqueue_only: bool
    max_wait_s: int  #: 0: wait until started
    may_reuse: bool
    startup_command: str | None  #: always there for BATCH
    starts_at: datetime | None  #: aware; BATCH only
    bootstrap_script: str | None
    dependencies: tuple[str, ...]
    callback_url: str | None
    owner_access_key: str | None


def parse_create(params: Params) -> CreateRequest:
    """Read a create request with the spellings of all versions; unknown keys are ignored.

    Raises:
        InvalidRequest: naming the field.
    """
    session_type = _session_type(params)
    _refuse_clusters(params)
    return CreateRequest(
        name=parse_name(params) if params.value(*_NAME_KEYS) is not None else None,
        image=_image(params),
        architecture=params.string("architecture", "arch"),
        session_type=session_type,
        group=params.string("group", "groupName", "group_name") or "default",
        domain=params.string("domain", "domainName", "domain_name") or "default",
        config=_config(params.inner("config")),
        tag=params.string("tag"),
        is_enqueue_only=params.boolean("enqueueOnly"),
        max_wait_s=params.integer("maxWaitSeconds", default=0),
        may_reuse=params.boolean("reuseIfExists", default=True),
        startup_command=_startup_command(params, session_type),
        starts_at=_starts_at(params, session_type),
        bootstrap_script=params.string("bootstrap_script", "bootstrapScript"),
        dependencies=tuple(params.string_list("dependencies") or ()),
        callback_url=_callback_url(params),
        owner_access_key=params.string("owner_access_key"),
    )


def parse_name(params: Params) -> str:
    """Read a session's name, of create or rename (specification 7.1, 7.5)."""
    name = params.required(*_NAME_KEYS)
    if _NAME.fullmatch(name) is None:
        raise params.refuse("name", "must be 4 to 64 letters, digits, '_', '-' or '.'")
    if name in _RESERVED:
        raise params.refuse("name", "is reserved")
    return name


def _session_type(params: Params) -> SessionType:
    word = params.string("type", "sessionType") or SessionType.INTERACTIVE.value
    try:
        return SessionType(word.lower())
    except ValueError:
        raise params.refuse("type", "must be interactive or batch") from None


def _image(params: Params) -> str:
    image = params.required("image", "lang")
    if len(image) > _LONGEST_IMAGE or not image.isprintable() or " " in image:
        raise params.refuse("image", "is not an image reference")
    return image


def _startup_command(params: Params, session_type: SessionType) -> str | None:
    command = params.string("startupCommand")
    if session_type is SessionType.BATCH and not command:
        raise params.refuse("startupCommand", "is required for batch sessions")
    if command and ("\0" in command or len(command) > _LONGEST_COMMAND):
        raise params.refuse("startupCommand", "is too long or has a null character")
    return command


def _starts_at(params: Params, session_type: SessionType) -> datetime | None:
    text = params.string("starts_at", "startsAt")
    if text is None:
        return None
    if session_type is not SessionType.BATCH:
        raise params.refuse("starts_at", "is for batch sessions only")
    try:
        return parse_time(text)
    except ValueError as exc:
        raise params.refuse("starts_at", str(exc)) from None


def _callback_url(params: Params) -> str | None:
    url = params.string("callback_url", "callbackUrl", "callbackURL")
    if url is not None and not url.startswith(("http://", "https://")):
        raise params.refuse("callback_url", "must be a URL")
    return url


def _refuse_clusters(params: Params) -> None:
    for place in (params, params.inner("config")):
        if place.integer("clusterSize", "cluster_size", default=1, minimum=1) > 1:
            raise place.refuse("clusterSize", "this server runs no clusters, only 1")
    mode = params.string("clusterMode", "cluster_mode")
    if mode not in (None, "single-node", "multi-node"):
        raise params.refuse("clusterMode", "must be single-node or multi-node")


def _config(config: Params) -> CreationConfig:
    return CreationConfig(
        mounts=tuple(config.string_list("mounts") or ()),
        mount_map=config.string_map("mount_map", "mountMap"),
        environ=_environ(config),
        slots=_slots(config),
        resource_opts=config.mapping("resource_opts", "resourceOpts") or {},
        scaling_group=config.string("scaling_group", "scalingGroup"),
        preopen_ports=_ports(config),
        agent_list=tuple(config.string_list("agent_list", "agentList") or ()),
    )


def _environ(config: Params) -> dict[str, str]:
    environ = config.string_map("environ")
    for name, value in environ.items():
        if not name or "=" in name or "\0" in name + value:
            raise config.refuse("environ", "has a name or value that no process can have")
    return environ


def _slots(config: Params) -> Slots:
    slots = parse_slots(config.mapping("resources") or {}, "config.resources.")
    legacy = parse_legacy(
        {
            name: config.value(name)
            for name in ("instanceCores", "instanceMemory", "instanceGPUs", "instanceTPUs")
        }
    )
    return Slots(
        legacy.cpu if slots.cpu is None else slots.cpu,
        legacy.memory_bytes if slots.memory_bytes is None else slots.memory_bytes,
    )


def _ports(config: Params) -> tuple[int, ...]:
    ports = config.value("preopen_ports", "preopenPorts") or []
    if not isinstance(ports, list) or any(
        isinstance(port, bool) or not isinstance(port, int) or port not in _PORTS for port in ports
    ):
        raise InvalidRequest.field("config.preopen_ports", "must be a list of ports above 1023")
    return tuple(dict.fromkeys(ports))
