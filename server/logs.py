"""Log lines: one event each, as text or as JSON, with the request that they belong to.

Nothing secret is ever handed to a logger: no key, no signed link, no webhook secret, no body. Lines about a
job carry `extra=record.tags`, so that the request that submitted it is found again hours later.
"""

from __future__ import annotations

import logging
import sys

from asgi_correlation_id import correlation_id
from pythonjsonlogger.json import JsonFormatter

from server.settings import LogFormat


def configure(form: LogFormat) -> None:
    """Log to standard error from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_with_request)
    if form == "json":
        fields = ("asctime", "levelname", "name", "message", "request_id")
        renamed = {"asctime": "time", "levelname": "level", "name": "logger"}
        handler.setFormatter(JsonFormatter(fields, rename_fields=renamed))
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s")
        )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("alembic", "asgi_correlation_id", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(
            logging.ERROR
        )  # HTTP clients log whole URLs, with what is secret in them


def _with_request(line: logging.LogRecord) -> bool:
    if not hasattr(line, "request_id"):
        line.request_id = correlation_id.get() or "-"
    return True
