"""Virtual folders, their shares and invitations; how many and how large a key may have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("keypairs") as keypairs:
        # What `keys.max_vfolders` gives by default; keys made before get it too.
        keypairs.add_column(
            sa.Column("max_vfolders", sa.Integer(), nullable=False, server_default="30")
        )
        keypairs.add_column(sa.Column("max_vfolder_bytes", sa.BigInteger(), nullable=True))
    with op.batch_alter_table("keypairs") as keypairs:
        keypairs.alter_column("max_vfolders", server_default=None)
    op.create_table(
        "vfolders",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("group_id", sa.Uuid(), nullable=True),
        sa.Column("creator", sa.String(320), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("permission", sa.String(2), nullable=False),
        sa.Column("usage_mode", sa.String(16), nullable=False),
        sa.Column("is_cloneable", sa.Boolean(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("max_bytes", sa.BigInteger(), nullable=True),
        sa.Column("max_inodes", sa.BigInteger(), nullable=True),
    )
    op.create_index("vfolders_of_user", "vfolders", ["user_id", "name"], unique=True)
    op.create_index("vfolders_of_group", "vfolders", ["group_id", "name"], unique=True)
    op.create_table(
        "vfolder_shares",
        sa.Column(
            "folder_id",
            sa.Uuid(),
            sa.ForeignKey("vfolders.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("user_id", sa.Uuid(), primary_key=True),
        sa.Column("email", sa.String(320), nullable=False),
        sa.Column("permission", sa.String(2), nullable=False),
    )
    op.create_index("vfolder_shares_of_user", "vfolder_shares", ["user_id"])
    op.create_table(
        "vfolder_invitations",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column(
            "folder_id",
            sa.Uuid(),
            sa.ForeignKey("vfolders.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("inviter_id", sa.Uuid(), nullable=False),
        sa.Column("inviter", sa.String(320), nullable=False),
        sa.Column("invitee_id", sa.Uuid(), nullable=False),
        sa.Column("invitee", sa.String(320), nullable=False),
        sa.Column("permission", sa.String(2), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("modified_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index(
        "vfolder_invitations_once", "vfolder_invitations", ["folder_id", "invitee_id"], unique=True
    )
    op.create_index("vfolder_invitations_to", "vfolder_invitations", ["invitee_id"])
    op.create_index("vfolder_invitations_by", "vfolder_invitations", ["inviter_id"])
