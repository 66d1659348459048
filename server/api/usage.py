"""Usage as the APIs return it: by model, by day, and as CSV for the operator."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time
from typing import Any

from server.api.submission import format_time
from server.store import Usage

DAY_S = 86400
CSV_COLUMNS = ("day", "tenant", "model", "jobs", "succeeded", "media_s", "device_s")


def start_of_day(day: date) -> float:
    """Return the start of a day in UTC, in seconds since 1970."""
    return datetime.combine(day, time(), UTC).timestamp()


def usage_by_model(rows: Sequence[Usage]) -> list[dict[str, Any]]:
    """Return one object per model, in the fields of WaveSpeed and ours."""
    return [
        {
            "model_uuid": model,
            "model_type": "video",
            "unit_price": 0.0,
            "total_cost": 0.0,
            "total_count": sum(row.jobs for row in group),
            "last_used_date": format_time(max(row.last_at for row in group)),
            **_seconds(group),
        }
        for model, group in _group(rows, lambda row: row.model)
    ]


def usage_by_day(rows: Sequence[Usage]) -> list[dict[str, Any]]:
    """Return one object per day with jobs, in the fields of WaveSpeed and ours."""
    return [
        {"date": day, "amount": 0.0, "count": sum(row.jobs for row in group), **_seconds(group)}
        for day, group in _group(rows, _day_of)
    ]


def usage_csv(rows: Sequence[Usage]) -> str:
    """Return one line per day, tenant and model, below a header."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        seconds = round(row.media_s, 3), round(row.device_s, 3)
        writer.writerow((_day_of(row), _as_text(row.tenant), row.model, row.jobs, row.succeeded, *seconds))
    return text.getvalue()


def _as_text(value: str) -> str:
    """Keep spreadsheets from reading a name as a formula."""
    return f"'{value}" if value.startswith(("=", "+", "-", "@")) else value


def _day_of(row: Usage) -> str:
    return datetime.fromtimestamp(row.day * DAY_S, UTC).date().isoformat()


def _seconds(rows: Sequence[Usage]) -> dict[str, float]:
    return {
        "media_s": round(sum(row.media_s for row in rows), 3),
        "device_s": round(sum(row.device_s for row in rows), 3),
    }


def _group(rows: Sequence[Usage], key: Callable[[Usage], str]) -> list[tuple[str, list[Usage]]]:
    groups: dict[str, list[Usage]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return sorted(groups.items())
