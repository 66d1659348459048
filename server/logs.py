"""Log lines, as text or as JSON: one event each, with the id of its request.

No logger receives a secret: no key, no signed link, no webhook secret, no body. Lines about a job carry
`extra=record.tags`, which has the id of the request that submitted it.
"""

from __future__ import annotations

import logging
import sys

from asgi_correlation_id import correlation_id
from pythonjsonlogger.json import JsonFormatter

from server.settings import LogFormat


def configure_logging(log_format: LogFormat) -> None:
    """Log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_request_id)
    if log_format == "json":
        fields = ("asctime", "levelname", "name", "message", "request_id")
        renames = {"asctime": "time", "levelname": "level", "name": "logger"}
        handler.setFormatter(JsonFormatter(fields, rename_fields=renames))
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s")
        )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("alembic", "asgi_correlation_id", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(logging.ERROR)  # HTTP clients log URLs with their secrets


def _add_request_id(record: logging.LogRecord) -> bool:
    if not hasattr(record, "request_id"):
        record.request_id = correlation_id.get() or "-"
    return True
