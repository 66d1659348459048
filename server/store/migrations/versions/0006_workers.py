"""Workers of all processes, each with its last report."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("process", sa.String(32), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("machine", sa.String(255), nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("condition", sa.String(16), nullable=False),
        sa.Column("starts", sa.Integer, nullable=False),
        sa.Column("seen_at", sa.Float, nullable=False),
    )
