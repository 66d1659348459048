"""Index for the latest start of a job of a tenant, so that claims do not read the jobs that have ended."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_index("by_start", "jobs", ["tenant", "started_at"])
