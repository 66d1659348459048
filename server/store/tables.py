"""The tables that `migrations` creates. A `key` is the name in code of a column with an older name."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()

JOBS = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("label", sa.String(200), key="endpoint", nullable=False),
    sa.Column("key_id", sa.String(16), nullable=False),
    sa.Column("idempotency_key", sa.String(200)),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("lease_until", sa.Float),
    sa.Column("started_at", sa.Float),
    sa.Column("finished_at", sa.Float),
    sa.Column("cancel_asked", sa.Boolean, key="cancel_requested", nullable=False),
    sa.Column("progress", sa.Text),
    sa.Column("output", sa.Text),
    sa.Column("failure", sa.Text),
    sa.Column("batch_id", sa.String(32)),
    sa.Column("batch_row", sa.Integer),
    sa.Column("inputs_ready", sa.Boolean, nullable=False),
    sa.Column("download_until", sa.Float),
    sa.UniqueConstraint("tenant", "idempotency_key", name="one_job_per_key"),
    sa.Index("by_turn", "state", "tenant", "priority", "created_at"),
    sa.Index("by_tenant", "tenant", "created_at"),
    sa.Index("by_start", "tenant", "started_at"),
    sa.Index("by_key", "key_id", "created_at"),
    sa.Index("by_batch", "batch_id", "batch_row"),
)

BATCHES = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("key_id", sa.String(16), nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("said", sa.Text, key="dialect_state", nullable=False),
    sa.Column("idempotency_key", sa.String(200)),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("unfinished", sa.Integer, nullable=False),
    sa.Column("webhook_url", sa.Text),
    sa.Column("finished_at", sa.Float),
    sa.UniqueConstraint("tenant", "idempotency_key", name="one_batch_per_key"),
    sa.Index("batches_by_tenant", "tenant", "created_at"),
)

SEGMENTS = sa.Table(
    "segments",
    metadata,
    sa.Column("job_id", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("key", sa.String(32), key="plan_key", nullable=False),
    sa.Column("fits", sa.String(32), key="compatibility_key", nullable=False),
    sa.Column("frames", sa.Integer, nullable=False),
    sa.Column("frames_done", sa.Integer, nullable=False),
    sa.Column("is_done", sa.Boolean, nullable=False),
    sa.Column("claims", sa.Integer, nullable=False),
    sa.Column("lease_until", sa.Float),
    sa.Column("helper_s", sa.Float, nullable=False),
    sa.Index("by_need", "job_id", "is_done", "number"),
    sa.Index("by_lease", "lease_until"),
)

OUTBOX = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("job_id", sa.String(32)),
    sa.Column("batch_id", sa.String(32)),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("due_at", sa.Float),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("delivered_at", sa.Float),
    sa.Column("last_error", sa.Text),
    sa.Index("by_due", "due_at"),
)

WORKERS = sa.Table(
    "workers",
    metadata,
    sa.Column("process", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("machine", sa.String(255), nullable=False),
    sa.Column("device", sa.String(64), nullable=False),
    sa.Column("model", sa.String(100), nullable=False),
    sa.Column("condition", sa.String(16), key="state", nullable=False),
    sa.Column("starts", sa.Integer, nullable=False),
    sa.Column("seen_at", sa.Float, key="reported_at", nullable=False),
    sa.Column("problem", sa.Text),
)

KEYS = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("scopes", sa.String(100), nullable=False),
    sa.Column("webhook_secret", sa.String(100), nullable=False),
    sa.Column("requests_per_minute", sa.Integer),
    sa.Column("max_active_jobs", sa.Integer),
    sa.Column("max_jobs_per_day", sa.Integer),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float),
    sa.Column("revoked_at", sa.Float),
    sa.Column("last_used_at", sa.Float),
)

USED_UPLOAD_LINKS = sa.Table(
    "used_upload_links",
    metadata,
    sa.Column("blob", sa.String(200), primary_key=True),
    sa.Column("used_at", sa.Float, nullable=False),
)

USAGE = sa.Table(
    "usage",
    metadata,
    sa.Column("job_id", sa.String(32), primary_key=True),
    sa.Column("day", sa.Integer, nullable=False),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("succeeded", sa.Integer, nullable=False),
    sa.Column("media_s", sa.Float, nullable=False),
    sa.Column("device_s", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float, nullable=False),
    sa.Index("usage_by_tenant", "tenant", "day"),
    sa.Index("usage_by_day", "day"),
)


def row_values(table: sa.Table, row: sa.Row[Any]) -> dict[str, Any]:
    """Return a row's values by the keys of its table's columns."""
    return {column.key: row._mapping[column] for column in table.c}
