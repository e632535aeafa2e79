"""The bytes that an upload declares in a column of their own, and an index that holds all a quota asks of them."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "s0004"
down_revision = "s0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both; what is there already is summed once."""
    op.add_column("service_uploads", sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"))
    rows = op.get_bind()
    for identity, parts in rows.execute(sa.text("SELECT id, parts FROM service_uploads")).all():
        listed = json.loads(parts) if isinstance(parts, str) else parts
        size = sum(int(part["size"]) for part in listed)
        rows.execute(
            sa.text("UPDATE service_uploads SET size_bytes = :size WHERE id = :id"), {"size": size, "id": identity}
        )
    op.create_index("ix_service_uploads_quota", "service_uploads", ["account_id", "state", "size_bytes"])
