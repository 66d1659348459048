"""OUT/report.html: the state of every row on one page, which loads nothing but its own thumbnails.

All text from the manifest is escaped, and every link leads into the output folder. The module knows neither
processes nor the results file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

from lipsync_engine.batch.manifest import ManifestRow
from lipsync_engine.batch.results import ClipStats, RowResult, RowStatus, thumbnail_path

STAGES = ("motion", "faces", "audio", "render", "assemble")
WAITING = "waiting"
"""The state of a row without a result."""


def write_report(
    path: Path,
    rows: Mapping[int, ManifestRow],
    results: Mapping[int, RowResult],
    n_rows: int,
    elapsed_s: float,
) -> None:
    """Write the page; it appears complete or not at all.

    Args:
        rows: by number; some refused rows have no entry.
        results: by row number; rows without one are waiting.
        n_rows: number of rows in the manifest.
        elapsed_s: of the run until now.
    """
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        for chunk in _render_page(rows, results, n_rows, elapsed_s):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _render_page(
    rows: Mapping[int, ManifestRow], results: Mapping[int, RowResult], n_rows: int, elapsed_s: float
) -> Iterator[str]:
    counts = {
        str(status): sum(result.status is status for result in results.values()) for status in RowStatus
    }
    counts[WAITING] = n_rows - len(results)
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    stats = [result.stats for result in results.values() if result.stats is not None]
    video_s, work_s = (
        sum(clip.duration_s for clip in stats),
        sum(sum(clip.seconds.values()) for clip in stats),
    )
    n_done = counts[RowStatus.DONE]
    title = f"All {n_rows} clips are done" if n_done == n_rows else f"{n_done} of {n_rows} clips are done"
    yield f"<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n<title>{title}</title>\n"
    yield '<meta name=viewport content="width=device-width, initial-scale=1">\n'
    yield f"<style>{style}</style>\n<main>\n<header>\n<p class=kind>Batch report</p>\n<h1>{title}</h1>\n"
    yield _render_status_bar(counts)
    yield "<dl>\n"
    facts = [
        ("video rendered", _format_duration(video_s)),
        ("working time", _format_duration(work_s)),
        ("last run", _format_duration(elapsed_s)),
    ]
    if video_s:
        facts.append(("work per second of video", f"{work_s / video_s:.1f} s"))
    for name, value in facts:
        yield f"<div><dt>{name}</dt><dd>{value}</dd></div>\n"
    yield "</dl>\n</header>\n"
    yield "<fieldset><legend>Show</legend>\n"
    filters = [("all", "All", n_rows)]
    filters += [(status, status.capitalize(), count) for status, count in counts.items() if count]
    for number, (name, text, count) in enumerate(filters):
        checked = "" if number else " checked"
        yield f"<label><input type=radio name=show id=show-{name}{checked}>{text} <b>{count}</b></label>\n"
    yield "</fieldset>\n<table>\n<thead><tr><th class=number>Row<th class=picture>Result<th>Clip<th>State"
    yield "<th class=number>Length<th class=number>Work\n<tbody>\n"
    for number in range(1, n_rows + 1):
        yield _render_row(number, rows.get(number), results.get(number))
    yield "</table>\n<footer>"
    yield "".join(f"<span><i class={stage}></i>{stage}</span>" for stage in STAGES)
    yield "</footer>\n</main>\n"


def _render_status_bar(counts: Mapping[str, int]) -> str:
    parts = [(status, count) for status, count in counts.items() if count]
    text = ", ".join(f"{count} {status}" for status, count in parts)
    bars = "".join(f'<i class={status} style="flex:{count}"></i>' for status, count in parts)
    return f'<div class=bar role=img aria-label="{text}">{bars}</div>\n<p class=counts>{text}</p>\n'


def _render_row(number: int, row: ManifestRow | None, result: RowResult | None) -> str:
    status = result.status if result else WAITING
    output = row.output if row else result.output if result else ""
    stats = result.stats if result else None
    text = output or (result.clip if result else "") or "no valid name"
    name = f"<strong>{escape(text)}</strong>"
    image = "<span class=none></span>"
    if stats is not None:
        link = escape(f"./{quote(output)}")
        name = f'<a href="{link}">{name}</a>'
        if stats.has_thumbnail:
            source = escape(f"./{thumbnail_path(output)}")
            image = f'<a href="{link}"><img src="{source}" alt="" loading=lazy></a>'
    files = [] if row is None else [f"{role} {path.name}" for role, path in row.inputs.items()]
    notes = [f"<p class=files>{escape(' · '.join(files))}</p>"] if files else []
    if result is not None and result.code is not None:
        notes.append(f"<p class=error>{escape(result.message)} <code>{escape(result.code)}</code></p>")
    if stats is not None:
        notes += [f"<p class=note>{escape(warning)}</p>" for warning in stats.warnings]
        if stats.frames_without_face:
            notes.append(
                f"<p class=note>{stats.frames_without_face} of {stats.frames} frames have no usable face and "
                "show the source.</p>"
            )
    attempts = ""
    if result is not None and result.attempts > 1:
        attempts = f"<small>{result.attempts} attempts</small>"
    length = f"{stats.duration_s:.1f} s<small>{stats.frames} frames</small>" if stats else ""
    return (
        f"<tr class={status}><td class=number>{number}<td class=picture>{image}<td class=clip>{name}"
        f"{''.join(notes)}<td><span class=chip>{status}</span>{attempts}<td class=number>{length}"
        f"<td class=number>{_render_work(stats) if stats else ''}\n"
    )


def _render_work(stats: ClipStats) -> str:
    """Render the total of seconds and a bar with each stage's share."""
    by_stage = {stage: stats.seconds.get(stage, 0.0) for stage in STAGES}
    total_s = sum(by_stage.values())
    text = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in by_stage.items() if seconds >= 0.05)
    bars = "".join(
        f'<i class={stage} style="flex:{seconds:.3f}"></i>'
        for stage, seconds in by_stage.items()
        if seconds > 0
    )
    return f'{total_s:.1f} s<span class=stages role=img aria-label="{text}" title="{text}">{bars}</span>'


def _format_duration(seconds: float) -> str:
    """Format as `7.3 s`, `4 min 05 s` or `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
