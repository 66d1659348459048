"""OUT/report.html: what became of every row, on one page that loads nothing but its own thumbnails.

Every text of the manifest is escaped, every link leads into the output folder. It knows neither processes nor
how results are kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

from lipsync_engine.batch.manifest import Row
from lipsync_engine.batch.results import Made, Result, Status, thumbnail

STAGES = ("motion", "faces", "audio", "render", "assemble")
WAITING = "waiting"
"""The state of a row without a result."""


def write_report(
    path: Path, rows: Mapping[int, Row], results: Mapping[int, Result], n_rows: int, elapsed_s: float
) -> None:
    """Write the page; it appears complete or not at all.

    Args:
        rows: by number; of some refused rows only the number is known.
        results: by row number; rows without one are waiting.
        n_rows: how many there are in all.
        elapsed_s: of the run until now.
    """
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        for piece in _page(rows, results, n_rows, elapsed_s):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _page(
    rows: Mapping[int, Row], results: Mapping[int, Result], n_rows: int, elapsed_s: float
) -> Iterator[str]:
    counts = {str(one): sum(result.status is one for result in results.values()) for one in Status}
    counts[WAITING] = n_rows - len(results)
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    made = [result.made for result in results.values() if result.made is not None]
    film_s, work_s = sum(one.duration_s for one in made), sum(sum(one.seconds.values()) for one in made)
    missing = n_rows - counts[Status.DONE]
    title = f"{counts[Status.DONE]} of {n_rows} clips are done" if missing else f"All {n_rows} clips are done"
    yield f"<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n<title>{title}</title>\n"
    yield '<meta name=viewport content="width=device-width, initial-scale=1">\n'
    yield f"<style>{style}</style>\n<main>\n<header>\n<p class=kind>Batch report</p>\n<h1>{title}</h1>\n"
    yield _bar(counts)
    yield "<dl>\n"
    facts = [("film made", _clock(film_s)), ("working time", _clock(work_s)), ("last run", _clock(elapsed_s))]
    if film_s:
        facts.append(("work per second of film", f"{work_s / film_s:.1f} s"))
    for name, value in facts:
        yield f"<div><dt>{name}</dt><dd>{value}</dd></div>\n"
    yield "</dl>\n</header>\n"
    yield "<fieldset><legend>Show</legend>\n"
    shown = [("all", "All", n_rows)]
    shown += [(word, word.capitalize(), count) for word, count in counts.items() if count]
    for number, (name, text, count) in enumerate(shown):
        checked = "" if number else " checked"
        yield f"<label><input type=radio name=show id=show-{name}{checked}>{text} <b>{count}</b></label>\n"
    yield "</fieldset>\n<table>\n<thead><tr><th class=number>Row<th class=picture>Result<th>Clip<th>State"
    yield "<th class=number>Length<th class=number>Work\n<tbody>\n"
    for number in range(1, n_rows + 1):
        yield _row(number, rows.get(number), results.get(number))
    yield "</table>\n<footer>"
    yield "".join(f"<span><i class={stage}></i>{stage}</span>" for stage in STAGES)
    yield "</footer>\n</main>\n"


def _bar(counts: Mapping[str, int]) -> str:
    parts = [(word, count) for word, count in counts.items() if count]
    text = ", ".join(f"{count} {word}" for word, count in parts)
    inside = "".join(f'<i class={word} style="flex:{count}"></i>' for word, count in parts)
    return f'<div class=bar role=img aria-label="{text}">{inside}</div>\n<p class=counts>{text}</p>\n'


def _row(number: int, row: Row | None, result: Result | None) -> str:
    word = result.status if result else WAITING
    output = row.output if row else result.output if result else ""
    made = result.made if result else None
    shown = output or (result.clip if result else "") or "no usable name"
    name = f"<strong>{escape(shown)}</strong>"
    picture = "<span class=none></span>"
    if made is not None:
        link = escape(f"./{quote(output)}")
        name = f'<a href="{link}">{name}</a>'
        if made.thumbnail:
            source = escape(f"./{thumbnail(output)}")
            picture = f'<a href="{link}"><img src="{source}" alt="" loading=lazy></a>'
    files = [] if row is None else [f"{role} {path.name}" for role, path in row.inputs.items()]
    notes = [f"<p class=files>{escape(' · '.join(files))}</p>"] if files else []
    if result is not None and result.code is not None:
        notes.append(f"<p class=error>{escape(result.message)} <code>{escape(result.code)}</code></p>")
    if made is not None:
        notes += [f"<p class=note>{escape(sentence)}</p>" for sentence in made.warnings]
        if made.frames_without_face:
            notes.append(
                f"<p class=note>{made.frames_without_face} of {made.frames} frames have no usable face: they "
                "are as in the source.</p>"
            )
    tries = f"<small>{result.attempts} tries</small>" if result is not None and result.attempts > 1 else ""
    length = f"{made.duration_s:.1f} s<small>{made.frames} frames</small>" if made else ""
    return (
        f"<tr class={word}><td class=number>{number}<td class=picture>{picture}<td class=clip>{name}"
        f"{''.join(notes)}<td><span class=chip>{word}</span>{tries}<td class=number>{length}"
        f"<td class=number>{_work(made) if made else ''}\n"
    )


def _work(made: Made) -> str:
    """Seconds, and a bar of the stages' shares."""
    took = {stage: made.seconds.get(stage, 0.0) for stage in STAGES}
    total_s = sum(took.values())
    text = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in took.items() if seconds >= 0.05)
    parts = "".join(f'<i class={s} style="flex:{t:.3f}"></i>' for s, t in took.items() if t > 0)
    return f'{total_s:.1f} s<span class=stages role=img aria-label="{text}" title="{text}">{parts}</span>'


def _clock(seconds: float) -> str:
    """`7.3 s`, `4 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
