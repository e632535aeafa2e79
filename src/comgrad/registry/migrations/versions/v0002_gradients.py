"""The table of gradients: what the contributor's examples say at the base, beside the vector."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and its index."""
    op.create_table(
        "gradients",
        sa.Column("vector_id", sa.String(40), sa.ForeignKey("vectors.id"), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("damage", sa.String(10)),
        sa.Column("created_at", sa.DateTime, nullable=False),
    )
    op.create_index("ix_gradients_digest", "gradients", ["digest"])
