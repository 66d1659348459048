"""When a job of a tenant began last is found without a look at all that have ended."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_index("by_start", "jobs", ["tenant", "started_at"])
