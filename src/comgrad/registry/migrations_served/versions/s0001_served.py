"""Who this registry is, and the vectors of its descriptions. Released migrations are never changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import VECTOR

revision = "s0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the extension and the tables."""
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.create_table(
        "registry",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("reconciled_at", sa.DateTime),
    )
    op.create_table(
        "description_vectors",
        sa.Column("vector_id", sa.String(40), sa.ForeignKey("vectors.id"), primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("numbers", VECTOR(), nullable=False),
    )
