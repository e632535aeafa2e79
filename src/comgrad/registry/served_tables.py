"""The table that only a registry on PostgreSQL has: who it is."""

from __future__ import annotations

from sqlalchemy import Column, MetaData, String, Table

from comgrad.registry.models import UtcDateTime

# Append only: the revisions of migrations_served, oldest first.
REVISIONS = ("s0001",)

metadata = MetaData()

registry = Table(
    "registry",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("reconciled_at", UtcDateTime),
)
