"""Log lines, as text or as JSON: one event each, with the id of its request.

No logger receives a secret: no key, no signed link, no webhook secret, no body. Lines about a job carry
`extra=record.tags`, which has the id of the request that submitted it.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from asgi_correlation_id import correlation_id
from pythonjsonlogger.json import JsonFormatter

from server.settings import LogFormat

request_log = logging.getLogger("lipsync.http")

LINK_TOKEN = re.compile(r"/[0-9a-f]{1,12}-[A-Za-z0-9_-]{1,64}(?=/)")
"""The secret part of a signed link."""

REQUEST_LINE = "%s %s %d, %d ms, client %s, key %s, tenant %s, model %s"
MAX_PATH_LENGTH = 200
DENIED = (401, 403, 429)
PROBES = ("/livez", "/readyz")


def format_time(seconds: float) -> str:
    """Format seconds since 1970 as RFC 3339 in UTC, to milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _TextFormatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return format_time(record.created)


class _JsonFormatter(JsonFormatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return format_time(record.created)


def configure_logging(log_format: LogFormat) -> None:
    """Log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_request_id)
    if log_format == "json":
        fields = ("asctime", "levelname", "name", "message", "request_id")
        renames = {"asctime": "time", "levelname": "level", "name": "logger"}
        handler.setFormatter(_JsonFormatter(fields, rename_fields=renames))
    else:
        handler.setFormatter(
            _TextFormatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s")
        )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("alembic", "asgi_correlation_id", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(logging.ERROR)  # HTTP clients log URLs with their secrets


def log_request(scope: Mapping[str, Any], status: int, seconds: float) -> None:
    """Log a request that changes something, fails or is denied; others only at the level DEBUG.

    Args:
        scope: ASGI's, after the request; its state may have a `caller` and a `model`.
    """
    method, path = scope["method"], scope["path"]
    is_read = method in ("GET", "HEAD") and status < 500 and status not in DENIED
    level = logging.DEBUG if is_read or path in PROBES else logging.INFO
    if not request_log.isEnabledFor(level):
        return
    state = scope.get("state", {})
    caller = state.get("caller")
    client = scope["client"][0] if scope.get("client") else "-"
    fields = {
        "method": method,
        "path": LINK_TOKEN.sub("/-", path).encode("unicode_escape").decode()[:MAX_PATH_LENGTH],
        "status": status,
        "ms": round(1000 * seconds),
        "client": client,
        "key_id": "-" if caller is None else caller.key_id,
        "tenant": "-" if caller is None else caller.tenant,
        "model": state.get("model", "-"),
    }
    request_log.log(level, REQUEST_LINE, *fields.values(), extra=fields)


def format_event(seconds: float, logger: str, message: str, **fields: object) -> str:
    """Return a line in the form of the JSON log, for what goes to standard output."""
    head = {"time": format_time(seconds), "level": "INFO", "logger": logger, "message": message}
    return json.dumps(head | fields)


def _add_request_id(record: logging.LogRecord) -> bool:
    if not hasattr(record, "request_id"):
        record.request_id = correlation_id.get() or "-"
    return True
