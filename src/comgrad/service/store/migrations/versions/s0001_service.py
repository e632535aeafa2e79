"""The service's first tables. Released migrations are never changed; a new one is appended beside this file."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "s0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables and their indexes."""
    op.create_table(
        "service_accounts",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("handle", sa.String(64), nullable=False),
        sa.Column("password", sa.String(300)),
        sa.Column("invitation", sa.String(64)),
        sa.Column("invitation_until", sa.DateTime),
        sa.Column("site_admin", sa.Boolean, nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "service_audit",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("account_id", sa.String(40)),
        sa.Column("handle", sa.String(64), nullable=False),
        sa.Column("action", sa.String(40), nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("client", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_table(
        "service_counters",
        sa.Column("name", sa.String(40), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "service_failures",
        sa.Column("key", sa.String(200), primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("since", sa.DateTime, nullable=False),
    )
    op.create_table(
        "service_handles",
        sa.Column("key", sa.String(200), primary_key=True),
        sa.Column("handle", sa.String(64), nullable=False),
        sa.Column("owner_id", sa.String(40), nullable=False),
        sa.UniqueConstraint("owner_id", name="uq_service_handles_owner_id"),
        sa.Column("kind", sa.String(10), nullable=False),
    )
    op.create_table(
        "service_jobs",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("key", sa.String(100)),
        sa.Column("account_id", sa.String(40)),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("steps", sa.JSON, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("result", sa.JSON),
        sa.Column("error", sa.JSON),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("worker", sa.String(40)),
        sa.Column("beat_at", sa.DateTime),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("started_at", sa.DateTime),
        sa.Column("finished_at", sa.DateTime),
    )
    op.create_table(
        "service_listings",
        sa.Column("vector_id", sa.String(40), primary_key=True),
        sa.Column("owner_id", sa.String(40), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("name_key", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("visibility", sa.String(10), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("card", sa.JSON, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("uploaded_by", sa.String(40), nullable=False),
        sa.Column("embedding", sa.LargeBinary),
        sa.Column("encoder", sa.String(64)),
        sa.Column("related", sa.JSON),
        sa.Column("screening", sa.JSON),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("removed_at", sa.DateTime),
        sa.Column("removed_reason", sa.Text),
        sa.Column("changed", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("owner_id", "name_key", name="uq_service_listings_name"),
    )
    op.create_table(
        "service_organisations",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("handle", sa.String(64), nullable=False),
        sa.Column("title", sa.String(200), nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "service_values",
        sa.Column("name", sa.String(40), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "service_memberships",
        sa.Column("organisation_id", sa.String(40), sa.ForeignKey("service_organisations.id"), primary_key=True),
        sa.Column("account_id", sa.String(40), sa.ForeignKey("service_accounts.id"), primary_key=True),
        sa.Column("role", sa.String(10), nullable=False),
        sa.Column("since", sa.DateTime, nullable=False),
    )
    op.create_table(
        "service_sessions",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("account_id", sa.String(40), sa.ForeignKey("service_accounts.id"), nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("expires_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "service_tokens",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("account_id", sa.String(40), sa.ForeignKey("service_accounts.id"), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.UniqueConstraint("digest", name="uq_service_tokens_digest"),
        sa.Column("scopes", sa.String(40), nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("expires_at", sa.DateTime, nullable=False),
        sa.Column("last_used_at", sa.DateTime),
        sa.Column("revoked_at", sa.DateTime),
    )
    op.create_table(
        "service_uploads",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("account_id", sa.String(40), sa.ForeignKey("service_accounts.id"), nullable=False),
        sa.Column("owner_id", sa.String(40), nullable=False),
        sa.Column("purpose", sa.String(10), nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("parts", sa.JSON, nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("job_id", sa.String(40)),
        sa.Column("vector_id", sa.String(40)),
        sa.Column("error", sa.JSON),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("expires_at", sa.DateTime, nullable=False),
    )
    op.create_index("ix_service_audit_action", "service_audit", ["action"])
    op.create_index("ix_service_jobs_key", "service_jobs", ["key"])
    op.create_index("ix_service_jobs_account_id", "service_jobs", ["account_id"])
    op.create_index("ix_service_jobs_state", "service_jobs", ["state"])
    op.create_index("ix_service_listings_digest", "service_listings", ["digest"])
    op.create_index("ix_service_listings_changed", "service_listings", ["changed"])
    op.create_index("ix_service_sessions_account_id", "service_sessions", ["account_id"])
    op.create_index("ix_service_tokens_account_id", "service_tokens", ["account_id"])
    op.create_index("ix_service_uploads_account_id", "service_uploads", ["account_id"])
    op.create_index("ix_service_uploads_state", "service_uploads", ["state"])
