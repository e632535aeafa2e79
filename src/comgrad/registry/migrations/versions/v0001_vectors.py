"""The table of vectors. Released migrations are never changed; a new one is appended beside this file."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and its indexes."""
    op.create_table(
        "vectors",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("name_key", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("search_text", sa.Text, nullable=False),
        sa.Column("base_name", sa.Text, nullable=False),
        sa.Column("base_fingerprint", sa.String(200)),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("rank", sa.Integer),
        sa.Column("norm", sa.Double),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("card", sa.JSON, nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("damage", sa.String(10)),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("removed_at", sa.DateTime),
        sa.Column("removed_reason", sa.Text),
        sa.UniqueConstraint("digest", name="uq_vectors_digest"),
        sa.UniqueConstraint("name_key", name="uq_vectors_name_key"),
    )
    op.create_index("ix_vectors_base_name", "vectors", ["base_name"])
    op.create_index("ix_vectors_state", "vectors", ["state"])
    op.create_index("ix_vectors_created_at", "vectors", ["created_at"])
