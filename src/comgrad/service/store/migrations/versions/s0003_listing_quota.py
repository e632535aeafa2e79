"""An index that holds all a quota asks of an account's listings, whose rows are large."""

from __future__ import annotations

from alembic import op

revision = "s0003"
down_revision = "s0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create it."""
    op.create_index("ix_service_listings_quota", "service_listings", ["uploaded_by", "state", "size_bytes"])
