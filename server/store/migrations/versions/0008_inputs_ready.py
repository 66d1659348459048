"""Jobs whose inputs are downloaded before they can start.

Jobs that have not ended are downloaded anew: before, a worker's slot did that.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    ready = sa.Column("inputs_ready", sa.Boolean, nullable=False, server_default=sa.true())
    op.add_column("jobs", ready)
    op.add_column("jobs", sa.Column("download_until", sa.Float))
    op.execute("UPDATE jobs SET inputs_ready = false WHERE state IN ('waiting', 'running')")
