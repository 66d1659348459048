"""The database: jobs, which are the queue and the truth, their segments, batches, notices, keys, workers.

The only owner of SQL. Every public method is one transaction; when it returns, what it says is on disk. What
may happen to a job is decided in `jobs`; this package finds the row, lets the pure transition change it, and
writes the row and what has to follow in the same commit. It knows no HTTP and no dialect.

SQLite by default, opened by exactly one process (a lock file guards that); PostgreSQL through its URL, shared
by any number.
"""

from server.store.batches import Batches, Tally
from server.store.database import AlreadyOpenError, DatabaseAwayError
from server.store.jobs import Change, QueueFullError, QuotaError, Record
from server.store.keys import ApiKey, Keys
from server.store.notifications import News
from server.store.outbox import Notice, Outbox
from server.store.segments import Piece, Segments, Share
from server.store.tables import metadata
from server.store.workers import SeenWorker, Workers

__all__ = [
    "AlreadyOpenError",
    "ApiKey",
    "Change",
    "DatabaseAwayError",
    "News",
    "Notice",
    "Piece",
    "QueueFullError",
    "QuotaError",
    "Record",
    "SeenWorker",
    "Share",
    "Store",
    "Tally",
    "metadata",
]


class Store(Batches, Segments, Outbox, Keys, Workers):
    """An open database; see `Database` for its arguments and errors, and the parents for what can be done."""
