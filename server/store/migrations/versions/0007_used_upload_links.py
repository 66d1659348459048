"""Upload links that were used: each accepts one file."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "used_upload_links",
        sa.Column("blob", sa.String(200), primary_key=True),
        sa.Column("used_at", sa.Float, nullable=False),
    )
