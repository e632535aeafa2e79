"""The tables that only a registry on PostgreSQL has: who it is, and the vectors of its descriptions."""

from __future__ import annotations

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import Column, ForeignKey, MetaData, String, Table, Text

from comgrad.registry.models import UtcDateTime, vectors

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

description_vectors = Table(
    "description_vectors",
    metadata,
    Column("vector_id", String(40), ForeignKey(vectors.c.id), primary_key=True),
    Column("model", Text, primary_key=True),
    Column("numbers", VECTOR(), nullable=False),
)
