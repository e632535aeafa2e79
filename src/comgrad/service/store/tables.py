"""The service's tables, in types that SQLite and PostgreSQL share. Rows of names and listings are never deleted."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from comgrad.registry.models import UtcDateTime

# Append only: the migrations' revisions, oldest first.
REVISIONS = ("s0001", "s0002", "s0003", "s0004")
VERSION_TABLE = "alembic_version_service"

metadata = MetaData()
ID = String(40)
DIGEST = String(64)

handles = Table(  # of accounts and organisations together; a handle never passes to another
    "service_handles",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("handle", String(64), nullable=False),
    Column("owner_id", ID, nullable=False, unique=True),
    Column("kind", String(10), nullable=False),
)

accounts = Table(
    "service_accounts",
    metadata,
    Column("id", ID, primary_key=True),
    Column("handle", String(64), nullable=False),
    Column("password", String(300)),
    Column("invitation", DIGEST),  # of the secret that lets choose a password: the first one, or after a reset
    Column("invitation_until", UtcDateTime),
    Column("site_admin", Boolean, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

organisations = Table(
    "service_organisations",
    metadata,
    Column("id", ID, primary_key=True),
    Column("handle", String(64), nullable=False),
    Column("title", String(200), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

memberships = Table(
    "service_memberships",
    metadata,
    Column("organisation_id", ID, ForeignKey("service_organisations.id"), primary_key=True),
    Column("account_id", ID, ForeignKey("service_accounts.id"), primary_key=True),
    Column("role", String(10), nullable=False),
    Column("since", UtcDateTime, nullable=False),
)

org_invitations = Table(  # membership needs the account's own yes
    "service_org_invitations",
    metadata,
    Column("organisation_id", ID, ForeignKey("service_organisations.id"), primary_key=True),
    Column("account_id", ID, ForeignKey("service_accounts.id"), primary_key=True, index=True),
    Column("role", String(10), nullable=False),
    Column("invited_by", ID, ForeignKey("service_accounts.id"), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)

tokens = Table(
    "service_tokens",
    metadata,
    Column("id", ID, primary_key=True),
    Column("account_id", ID, ForeignKey("service_accounts.id"), nullable=False, index=True),
    Column("name", String(100), nullable=False),
    Column("digest", DIGEST, nullable=False, unique=True),
    Column("scopes", String(40), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("last_used_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
)

sessions = Table(
    "service_sessions",
    metadata,
    Column("digest", DIGEST, primary_key=True),
    Column("account_id", ID, ForeignKey("service_accounts.id"), nullable=False, index=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)

failures = Table(  # attempts at secrets by handle and by address, over all processes; `since`: the last one
    "service_failures",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("count", Integer, nullable=False),
    Column("since", UtcDateTime, nullable=False),
)

values = Table(
    "service_values",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("value", Text, nullable=False),
)

counters = Table(
    "service_counters",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

listings = Table(  # what an account or organisation shares of a vector of the registry
    "service_listings",
    metadata,
    Column("vector_id", ID, primary_key=True),
    Column("owner_id", ID, primary_key=True),
    Column("name", Text, nullable=False),
    Column("name_key", Text, nullable=False),
    Column("digest", DIGEST, nullable=False, index=True),
    Column("visibility", String(10), nullable=False),
    Column("state", String(10), nullable=False),
    Column("card", JSON, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("uploaded_by", ID, nullable=False),
    Column("embedding", LargeBinary),
    Column("encoder", DIGEST),
    Column("related", JSON),
    Column("screening", JSON),
    Column("created_at", UtcDateTime, nullable=False),
    Column("removed_at", UtcDateTime),
    Column("removed_reason", Text),
    Column("changed", BigInteger, nullable=False, index=True),
    UniqueConstraint("owner_id", "name_key", name="uq_service_listings_name"),
    Index("ix_service_listings_quota", "uploaded_by", "state", "size_bytes"),  # rows are large: it holds all of the sum
)

uploads = Table(
    "service_uploads",
    metadata,
    Column("id", ID, primary_key=True),
    Column("account_id", ID, ForeignKey("service_accounts.id"), nullable=False, index=True),
    Column("owner_id", ID, nullable=False),
    Column("purpose", String(10), nullable=False),
    Column("request", JSON, nullable=False),
    Column("parts", JSON, nullable=False),
    Column("state", String(10), nullable=False, index=True),
    Column("job_id", ID),
    Column("vector_id", ID),
    Column("error", JSON),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Index("ix_service_uploads_quota", "account_id", "state", "size_bytes"),
)

jobs = Table(
    "service_jobs",
    metadata,
    Column("id", ID, primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("key", String(100), index=True),
    Column("account_id", ID, index=True),
    Column("payload", JSON, nullable=False),
    Column("state", String(10), nullable=False, index=True),
    Column("steps", JSON, nullable=False),
    Column("done", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("result", JSON),
    Column("error", JSON),
    Column("attempts", Integer, nullable=False),
    Column("worker", String(40)),
    Column("beat_at", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Index("ix_service_jobs_waiting", "account_id", "state"),  # of jobs most are over
)

audit = Table(  # append only; each row's hash covers the one before
    "service_audit",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("account_id", ID),
    Column("handle", String(64), nullable=False),
    Column("action", String(40), nullable=False, index=True),
    Column("target", Text, nullable=False),
    Column("detail", JSON, nullable=False),
    Column("client", String(64), nullable=False),
    Column("hash", DIGEST, nullable=False),
)
