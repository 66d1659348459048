"""Upload links: which ones were used, because each accepts one file."""

from __future__ import annotations

import sqlalchemy as sa

from server.store.database import Database
from server.store.tables import USED_UPLOAD_LINKS


class UploadStore(Database):
    """Part of `Store`: used upload links."""

    def claim_upload(self, blob: str, now: float) -> bool:
        """Record that the link of a blob is used; returns whether it was not before, in any process."""
        try:
            with self.transaction() as connection:
                connection.execute(sa.insert(USED_UPLOAD_LINKS).values(blob=blob, used_at=now))
        except sa.exc.IntegrityError:
            return False
        return True

    def release_upload(self, blob: str) -> None:
        """Let the link of a blob be used again, because its upload failed."""
        with self.transaction() as connection:
            connection.execute(sa.delete(USED_UPLOAD_LINKS).where(USED_UPLOAD_LINKS.c.blob == blob))

    def delete_used_upload_links(self, before: float) -> None:
        """Forget links that have expired anyway."""
        with self.transaction() as connection:
            connection.execute(sa.delete(USED_UPLOAD_LINKS).where(USED_UPLOAD_LINKS.c.used_at < before))
