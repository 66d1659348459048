"""Batches: jobs that are submitted together."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("said", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.String(200)),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("unfinished", sa.Integer, nullable=False),
        sa.Column("webhook_url", sa.Text),
        sa.Column("finished_at", sa.Float),
        sa.UniqueConstraint("tenant", "idempotency_key", name="one_batch_per_key"),
    )
    op.create_index("batches_by_tenant", "batches", ["tenant", "created_at"])
    op.add_column("jobs", sa.Column("batch_id", sa.String(32)))
    op.add_column("jobs", sa.Column("batch_row", sa.Integer))
    op.create_index("by_batch", "jobs", ["batch_id", "batch_row"])
    with op.batch_alter_table("outbox") as outbox:
        outbox.add_column(sa.Column("batch_id", sa.String(32)))
        outbox.alter_column("job_id", existing_type=sa.String(32), nullable=True)
