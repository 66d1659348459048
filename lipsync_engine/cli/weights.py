"""`lipsync weights`: list, download, verify and import model files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from lipsync_engine.cli.terminal import download_bars, out
from lipsync_engine.errors import ErrorCode, WeightsError

weights_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Model files: list, download, verify, import."
)


@weights_app.command("list")
def list_weights() -> None:
    """List the models of the manifest."""
    from lipsync_engine.weights import WeightsStore

    store = WeightsStore()
    name = Column("name", no_wrap=True)
    table = Table(name, "family", "licence", "commercial use", Column("state", overflow="fold"), box=None)
    for entry in store.entries():
        table.add_row(
            entry.name, entry.family, entry.licence, entry.commercial, store.describe_status(entry.name)
        )
    out.print(table)


@weights_app.command("pull")
def pull_weights(name: Annotated[str, typer.Argument(help="Model to download.")]) -> None:
    """Download a model and what it needs; an interrupted download is resumed."""
    from lipsync_engine.weights import WeightsStore

    with download_bars() as on_bytes:
        WeightsStore().pull(name, on_bytes)
    out.print(f"{name} is ready.")


@weights_app.command("verify")
def verify_weights(
    name: Annotated[
        str | None, typer.Argument(help="Model to verify; without it all that are present.")
    ] = None,
) -> None:
    """Hash the files again and compare them with the manifest."""
    from lipsync_engine.weights import FileState, WeightsStore

    code_by_state = {
        FileState.MISSING: ErrorCode.WEIGHTS_MISSING,
        FileState.TRUNCATED: ErrorCode.WEIGHTS_TRUNCATED,
        FileState.CHANGED: ErrorCode.WEIGHTS_HASH_MISMATCH,
    }
    store = WeightsStore()
    code: ErrorCode | None = None
    for entry_name in [name] if name else [entry.name for entry in store.entries()]:
        for report in store.verify(entry_name):
            if name is None and report.state is FileState.MISSING:
                continue
            out.print(f"{entry_name}  {report.path.name}  {report.state}", soft_wrap=True)
            code = code or code_by_state.get(report.state)
    if code is not None:
        raise WeightsError(code, "Some files do not match the manifest: pull or import them again.")


@weights_app.command("import")
def import_weights(path: Annotated[Path, typer.Argument(help="File or folder with model files.")]) -> None:
    """Import model files from a folder instead of the network; they are verified before use."""
    from lipsync_engine.weights import WeightsStore

    for report in WeightsStore().import_path(path):
        out.print(f"{report.path.name}  {report.state}", soft_wrap=True)
