"""Run by Alembic: applies the service's migrations on the connection that `store.database` hands over."""

from __future__ import annotations

from alembic import context

from comgrad.service.store.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,  # in PostgreSQL the catalogue's own version stands beside it
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
