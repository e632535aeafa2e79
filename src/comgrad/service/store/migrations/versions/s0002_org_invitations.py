"""Invitations to organisations: an account joins by its own yes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "s0002"
down_revision = "s0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and its index."""
    op.create_table(
        "service_org_invitations",
        sa.Column("organisation_id", sa.String(40), sa.ForeignKey("service_organisations.id"), primary_key=True),
        sa.Column("account_id", sa.String(40), sa.ForeignKey("service_accounts.id"), primary_key=True),
        sa.Column("role", sa.String(10), nullable=False),
        sa.Column("invited_by", sa.String(40), sa.ForeignKey("service_accounts.id"), nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("expires_at", sa.DateTime, nullable=False),
    )
    op.create_index("ix_service_org_invitations_account_id", "service_org_invitations", ["account_id"])
