"""The virtual folders that a session was made with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("sessions") as sessions:
        sessions.add_column(sa.Column("mounts", sa.JSON(), nullable=False, server_default="[]"))
    with op.batch_alter_table("sessions") as sessions:
        sessions.alter_column("mounts", server_default=None)
