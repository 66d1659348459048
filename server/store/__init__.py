"""The database: jobs, which are the queue, their segments, batches, webhooks, API keys and workers.

The only owner of SQL. Every public method is one transaction; when it returns, the change is on disk. The
transitions of a job are pure functions of `jobs.state`; this package reads the row, applies the transition,
and writes the row and everything that has to follow in the same commit. It knows no HTTP and no dialect.

SQLite by default, opened by exactly one process (a lock file guards that); PostgreSQL through its URL, shared
by any number.
"""

from server.store.batches import BatchCounts, BatchStore
from server.store.database import AlreadyOpenError, DatabaseUnavailableError
from server.store.jobs import JobChange, QueueFullError, QueueLimits, QuotaError, Record
from server.store.keys import SECRET_COLUMNS, ApiKey, KeyExistsError, KeyStore, LastAdminKeyError
from server.store.notifications import Notification
from server.store.outbox import OutboxEntry, OutboxStore
from server.store.segments import SegmentClaim, SegmentRecord, SegmentStore
from server.store.tables import metadata
from server.store.uploads import UploadStore
from server.store.usage import Usage, UsageStore
from server.store.workers import WorkerRecord, WorkerStore

__all__ = [
    "SECRET_COLUMNS",
    "AlreadyOpenError",
    "ApiKey",
    "BatchCounts",
    "DatabaseUnavailableError",
    "JobChange",
    "KeyExistsError",
    "LastAdminKeyError",
    "Notification",
    "OutboxEntry",
    "QueueFullError",
    "QueueLimits",
    "QuotaError",
    "Record",
    "SegmentClaim",
    "SegmentRecord",
    "Store",
    "Usage",
    "WorkerRecord",
    "metadata",
]


class Store(BatchStore, SegmentStore, OutboxStore, KeyStore, UploadStore, UsageStore, WorkerStore):
    """An open database; see `Database` for its arguments and errors, and the parents for its methods."""
