"""The queries of GraphQL that list things for the public client (specification 8).

The schema and how an answer looks; what the roots give comes from whoever executes a query.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import graphql

from retort.core.keypair import KeyPair
from retort.core.vfolder import DEFAULT_GROUP, SeenVFolder
from retort.errors import InvalidRequest, RequestError
from retort.wire.graphql_sessions import SCHEMA as SESSION_SCHEMA
from retort.wire.params import Params
from retort.wire.times import format_time
from retort.wire.vfolders import GROUP_NAME, HOST, owner_type

MAX_TOKENS = 2000  #: of a query; the client's have fifty
MAX_PAGE = 1000  #: items of one answer

_SCHEMA = """
scalar UUID
scalar DateTime
scalar BigInt
scalar JSONString
type Query {
  keypair(domain_name: String, access_key: String): KeyPair
  compute_session(id: UUID!): ComputeSession
  compute_session_list(limit: Int!, offset: Int!, filter: String, order: String,
    domain_name: String, group_id: String, access_key: String, status: String): ComputeSessionList
  vfolder_list(limit: Int!, offset: Int!, filter: String, order: String, domain_name: String,
    group_id: UUID, access_key: String): VirtualFolderList
  vfolder_own_list(limit: Int!, offset: Int!, filter: String, order: String): VirtualFolderList
  vfolder_invited_list(limit: Int!, offset: Int!, filter: String, order: String): VirtualFolderList
  vfolder_project_list(limit: Int!, offset: Int!, filter: String, order: String): VirtualFolderList
  groups(domain_name: String, is_active: Boolean): [Group]
  groups_by_name(name: String!, domain_name: String): [Group]
}
type KeyPair { user_id: String, full_name: String, user_info: UserInfo, access_key: String,
  secret_key: String, is_active: Boolean, is_admin: Boolean, created_at: DateTime,
  last_used: DateTime, resource_policy: String, rate_limit: Int, concurrency_used: Int,
  projects: [String] }
type UserInfo { full_name: String }
type VirtualFolderList { items: [VirtualFolder]!, total_count: Int! }
type VirtualFolder { id: UUID, host: String, name: String, user: UUID, group: UUID, creator: String,
  unmanaged_path: String, usage_mode: String, permission: String, ownership_type: String,
  max_files: Int, max_size: BigInt, created_at: DateTime, last_used: DateTime, num_files: Int,
  cur_size: BigInt, cloneable: Boolean, status: String }
type Group { id: UUID, name: String, description: String, is_active: Boolean, created_at: DateTime,
  domain_name: String, total_resource_slots: JSONString, allowed_vfolder_hosts: JSONString,
  integration_id: String }
"""

_CONDITION = re.compile(
    r"\s*(\w+)\s*(==|!=|contains)\s*(?:\"([^\"]*)\"|(true|false|null))\s*", re.ASCII
)
_WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class Query:
    """One request: a document, its variables, and which of its operations is meant."""

    source: str
    variables: Mapping[str, Any]
    operation: str | None


def parse_query(params: Params) -> Query:
    """Read a GraphQL request."""
    return Query(
        params.required("query"),
        params.mapping("variables") or {},
        params.string("operation_name", "operationName") or None,
    )


async def execute(query: Query, roots: Mapping[str, Any]) -> dict[str, Any]:
    """Execute a query.

    Args:
        roots: by name, a coroutine function that takes graphql's info and the field's arguments.

    Returns:
        dict: `data`, its keys in the order of the query, and `errors` only if there are some.

    Raises:
        Exception: whatever a root raised that is no RequestError: it is ours, not the caller's.
    """
    try:
        document = graphql.parse(query.source, max_tokens=MAX_TOKENS)
    except graphql.GraphQLError as exc:
        return {"data": None, "errors": [_formatted(exc)]}
    if problems := graphql.validate(_schema(), document):
        return {"data": None, "errors": [_formatted(problem) for problem in problems]}
    found = graphql.execute(
        _schema(),
        document,
        root_value=roots,
        variable_values=dict(query.variables),
        operation_name=query.operation,
    )
    result = found if isinstance(found, graphql.ExecutionResult) else await found
    for error in result.errors or ():
        cause = error.original_error
        if cause is not None and not isinstance(cause, RequestError | graphql.GraphQLError):
            raise cause
    answer: dict[str, Any] = {"data": result.data}
    if result.errors:
        answer["errors"] = [_formatted(error) for error in result.errors]
    return answer


def _formatted(error: graphql.GraphQLError) -> dict[str, Any]:
    cause = error.original_error
    said = cause.message if isinstance(cause, RequestError) else error.message
    places = [{"line": at.line, "column": at.column} for at in error.locations or ()]
    return {"message": said, "path": error.path or [], "locations": places}


@functools.cache
def _schema() -> graphql.GraphQLSchema:
    return graphql.build_schema(_SCHEMA + SESSION_SCHEMA)


def page(
    items: Sequence[Mapping[str, Any]],
    limit: int,
    offset: int,
    condition: str | None,
    order: str | None,
) -> dict[str, Any]:
    """Give a page of items, and how many there were before paging.

    Args:
        condition: `name == "x"`, `!=` or `contains`, several joined by `&`.
        order: fields joined by commas, each with `-` before it for the reverse.

    Raises:
        InvalidRequest: a bound, a field or a condition makes no sense.
    """
    if not 0 <= limit <= MAX_PAGE or offset < 0:
        raise InvalidRequest(f"limit must be from 0 to {MAX_PAGE}, offset not negative")
    kept = [item for item in items if _fits(item, condition)]
    for part in reversed([part.strip() for part in (order or "").split(",") if part.strip()]):
        name = part.lstrip("+-")
        if kept and name not in kept[0]:
            raise InvalidRequest(f"order: there is no field {name[:64]}")
        kept.sort(key=lambda item: str(item[name]), reverse=part.startswith("-"))
    return {"items": kept[offset : offset + limit], "total_count": len(kept)}


def _fits(item: Mapping[str, Any], condition: str | None) -> bool:
    for part in (condition or "").split("&") if condition else ():
        match = _CONDITION.fullmatch(part)
        if match is None or match[1] not in item:
            raise InvalidRequest('filter: must be such as `name == "x"`, joined by &')
        wanted = _WORDS[match[4]] if match[4] else match[3]
        if match[2] == "contains":
            is_fit = str(wanted) in str(item[match[1]])
        else:
            is_fit = (item[match[1]] == wanted) == (match[2] == "==")
        if not is_fit:
            return False
    return True


def keypair(pair: KeyPair, live_sessions: int) -> dict[str, Any]:
    """Give a key pair as the schema has it; its user is known by e-mail there."""
    return {
        "user_id": pair.email,
        "full_name": pair.email,
        "user_info": {"full_name": pair.email},
        "access_key": pair.access_key,
        "secret_key": pair.secret_key,
        "is_active": pair.is_active,
        "is_admin": pair.is_admin,
        "created_at": format_time(pair.created_at),
        "last_used": None,
        "resource_policy": "default",
        "rate_limit": pair.policy.rate_limit,
        "concurrency_used": live_sessions,
        "projects": [GROUP_NAME],
    }


def vfolder(seen: SeenVFolder) -> dict[str, Any]:
    """Give a virtual folder as the schema has it."""
    folder = seen.folder
    return {
        "id": str(folder.id),
        "host": HOST,
        "name": folder.name,
        "user": None if folder.user_id is None else str(folder.user_id),
        "group": None if folder.group_id is None else str(folder.group_id),
        "creator": folder.creator,
        "unmanaged_path": None,
        "usage_mode": folder.usage_mode.value,
        "permission": seen.permission.value,
        "ownership_type": owner_type(folder),
        "max_files": min(folder.max_inodes or 0, 2**31 - 1),
        "max_size": folder.max_bytes,
        "created_at": format_time(folder.created_at),
        "last_used": None,
        "num_files": 0,
        "cur_size": 0,
        "cloneable": folder.is_cloneable,
        "status": folder.status.value,
    }


def default_group() -> dict[str, Any]:
    """Give the one group that every user belongs to."""
    return {
        "id": str(DEFAULT_GROUP),
        "name": GROUP_NAME,
        "description": "All users of this server",
        "is_active": True,
        "created_at": None,
        "domain_name": "default",
        "total_resource_slots": "{}",
        "allowed_vfolder_hosts": f'["{HOST}"]',
        "integration_id": None,
    }
