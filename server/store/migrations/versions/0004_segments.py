"""Segments of running jobs, which any worker may render."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "segments",
        sa.Column("job_id", sa.String(32), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("key", sa.String(32), nullable=False),
        sa.Column("fits", sa.String(32), nullable=False),
        sa.Column("frames", sa.Integer, nullable=False),
        sa.Column("frames_done", sa.Integer, nullable=False),
        sa.Column("is_done", sa.Boolean, nullable=False),
        sa.Column("claims", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.Float),
        sa.Column("helper_s", sa.Float, nullable=False),
    )
    op.create_index("by_need", "segments", ["job_id", "is_done", "number"])
    op.create_index("by_lease", "segments", ["lease_until"])
