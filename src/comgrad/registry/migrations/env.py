"""Run by Alembic: applies the migrations on the connection that `database.upgrade` hands over."""

from __future__ import annotations

from alembic import context

from comgrad.registry.models import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # SQLite can: a migration that is killed leaves nothing behind
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
