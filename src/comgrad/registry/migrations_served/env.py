"""Run by Alembic: the tables that only a served registry has, with a version table of their own."""

from __future__ import annotations

from alembic import context

from comgrad.registry.served_tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="alembic_version_served",
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
