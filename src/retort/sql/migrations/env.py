"""Alembic's entry: runs the steps on the connection that `migrate` hands down."""

from __future__ import annotations

from alembic import context

from retort.sql.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,  # SQLite's too, because the caller has begun the transaction itself
    render_as_batch=True,  # SQLite alters a table by copying it
)
context.run_migrations()
