"""The bytes that an upload declares in a column of their own, and indices that hold all that quotas ask of uploads and jobs."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "s0004"
down_revision = "s0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them; what is there already is summed once."""
    op.add_column("service_uploads", sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"))
    rows = op.get_bind()
    for identity, parts in rows.execute(sa.text("SELECT id, parts FROM service_uploads")).all():
        listed = json.loads(parts) if isinstance(parts, str) else parts
        size = sum(int(part["size"]) for part in listed)
        rows.execute(
            sa.text("UPDATE service_uploads SET size_bytes = :size WHERE id = :id"), {"size": size, "id": identity}
        )
    op.create_index("ix_service_uploads_quota", "service_uploads", ["account_id", "state", "size_bytes"])
    op.create_index("ix_service_jobs_waiting", "service_jobs", ["account_id", "state"])
