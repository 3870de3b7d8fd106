"""The tables, and how Retort's values lie in their columns. Changes need a migration."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from retort.core.limits import Limits, Usage
from retort.core.mount import Mount

METADATA = sa.MetaData()


class Moment(sa.TypeDecorator[dt.datetime]):
    """An aware UTC time with microseconds. SQLite forgets zones, so UTC is put back here."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: sa.Dialect) -> Any:
        """Turn any aware time into UTC; a naive one is a bug."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise TypeError("times are aware; this one has no zone")
        return value.astimezone(dt.UTC)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> dt.datetime | None:
        """Give an aware UTC time on every database."""
        if value is None:
            return None
        if value.tzinfo is None:
            return value.replace(tzinfo=dt.UTC)  # type: ignore[no-any-return]
        return value.astimezone(dt.UTC)  # type: ignore[no-any-return]


class Document(sa.TypeDecorator[Any]):
    """A value kept as JSON and read back as its Python type.

    A record written before a field existed gets that field's default; one that has a field too
    many is read without it. So a dataclass may grow and shrink without a migration.

    Args:
        kind: what to read back, e.g. a dataclass or `dict[str, str]`.
    """

    impl = sa.JSON
    cache_ok = True

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        """Give plain JSON values."""
        return msgspec.to_builtins(dict(value) if isinstance(value, Mapping) else value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        """Check and rebuild the value."""
        return msgspec.convert(value, type=self.kind)


KEYPAIRS = sa.Table(
    "keypairs",
    METADATA,
    sa.Column("access_key", sa.String(64), primary_key=True),
    sa.Column("secret_key", sa.String(128), nullable=False),
    sa.Column("token_sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("user_id", sa.Uuid(), nullable=False),
    sa.Column("email", sa.String(320), nullable=False),
    sa.Column("created_at", Moment(), nullable=False),
    sa.Column("is_active", sa.Boolean(), nullable=False),
    sa.Column("is_admin", sa.Boolean(), nullable=False),
    sa.Column("max_sessions", sa.Integer(), nullable=False),
    sa.Column("rate_limit", sa.Integer(), nullable=False),
    sa.Column("max_memory_bytes", sa.BigInteger(), nullable=True),
    sa.Column("max_cpus", sa.Float(), nullable=True),
    sa.Column("max_vfolders", sa.Integer(), nullable=False),
    sa.Column("max_vfolder_bytes", sa.BigInteger(), nullable=True),
)

#: Which sessions count as ended; `SessionStatus.is_live` in SQL, as text because an index needs it.
ENDED = "status IN ('TERMINATED', 'CANCELLED')"
LIVE = "status NOT IN ('TERMINATED', 'CANCELLED')"

SESSIONS = sa.Table(
    "sessions",
    METADATA,
    sa.Column("id", sa.Uuid(), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("user_id", sa.Uuid(), nullable=False),
    sa.Column("image", sa.Text(), nullable=False),
    sa.Column("asked_image", sa.Text(), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("created_at", Moment(), nullable=False),
    sa.Column("terminated_at", Moment(), nullable=True),
    sa.Column("tag", sa.Text(), nullable=True),
    sa.Column("environ", Document(dict[str, str]), nullable=False),
    sa.Column("limits", Document(Limits), nullable=False),
    sa.Column("resource_slots", Document(dict[str, str]), nullable=False),
    sa.Column("bootstrap_script", sa.Text(), nullable=True),
    sa.Column("num_queries", sa.Integer(), nullable=False),
    sa.Column("reason", sa.Text(), nullable=False),
    sa.Column("usage", Document(Usage), nullable=False),
    sa.Column("history", Document(tuple[tuple[str, str], ...]), nullable=False),
    sa.Column("mounts", Document(tuple[Mount, ...]), nullable=False),
    # A name is taken among its owner's live sessions only; the database decides races.
    sa.Index(
        "sessions_live_name",
        "owner",
        "name",
        unique=True,
        sqlite_where=sa.text(LIVE),
        postgresql_where=sa.text(LIVE),
    ),
    sa.Index("sessions_by_owner", "owner", "created_at"),
    # The sweep of ended sessions, and the start-up read of live ones.
    sa.Index("sessions_by_status", "status", "terminated_at"),
)

VFOLDERS = sa.Table(
    "vfolders",
    METADATA,
    sa.Column("id", sa.Uuid(), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("user_id", sa.Uuid(), nullable=True),
    sa.Column("group_id", sa.Uuid(), nullable=True),
    sa.Column("creator", sa.String(320), nullable=False),
    sa.Column("created_at", Moment(), nullable=False),
    sa.Column("permission", sa.String(2), nullable=False),
    sa.Column("usage_mode", sa.String(16), nullable=False),
    sa.Column("is_cloneable", sa.Boolean(), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("max_bytes", sa.BigInteger(), nullable=True),
    sa.Column("max_inodes", sa.BigInteger(), nullable=True),
    # The database decides races for a name; NULLs are all different.
    sa.Index("vfolders_of_user", "user_id", "name", unique=True),
    sa.Index("vfolders_of_group", "group_id", "name", unique=True),
)

VFOLDER_SHARES = sa.Table(
    "vfolder_shares",
    METADATA,
    sa.Column(
        "folder_id", sa.Uuid(), sa.ForeignKey("vfolders.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("user_id", sa.Uuid(), primary_key=True),
    sa.Column("email", sa.String(320), nullable=False),
    sa.Column("permission", sa.String(2), nullable=False),
    sa.Index("vfolder_shares_of_user", "user_id"),
)

VFOLDER_INVITATIONS = sa.Table(
    "vfolder_invitations",
    METADATA,
    sa.Column("id", sa.Uuid(), primary_key=True),
    sa.Column(
        "folder_id", sa.Uuid(), sa.ForeignKey("vfolders.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("inviter_id", sa.Uuid(), nullable=False),
    sa.Column("inviter", sa.String(320), nullable=False),
    sa.Column("invitee_id", sa.Uuid(), nullable=False),
    sa.Column("invitee", sa.String(320), nullable=False),
    sa.Column("permission", sa.String(2), nullable=False),
    sa.Column("created_at", Moment(), nullable=False),
    sa.Column("modified_at", Moment(), nullable=False),
    sa.Index("vfolder_invitations_once", "folder_id", "invitee_id", unique=True),
    sa.Index("vfolder_invitations_to", "invitee_id"),
    sa.Index("vfolder_invitations_by", "inviter_id"),
)
