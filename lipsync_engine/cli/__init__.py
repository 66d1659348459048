"""The `lipsync` command: arguments in, progress and results to a terminal.

Every failure ends with one line `error [code]: message` on standard error and the code's exit status. The
package decides nothing about media or models. Heavy modules load only when a command needs them.

    options    options that several commands share
    jobs       what the commands that render videos share
    terminal   consoles, progress bars, results
    sync, multi, portrait, batch, score, verify, probe, faces, doctor, weights   one command each
    server     the server's commands
    licences   `doctor --licenses`
    memory     `doctor`'s memory plans for a GPU
"""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from lipsync_engine.cli import batch, doctor, faces, multi, portrait, probe, score, server, sync, verify
from lipsync_engine.cli.terminal import out, print_error
from lipsync_engine.cli.weights import weights_app
from lipsync_engine.errors import EXIT_STATUS, Cancelled, ErrorCode, LipSyncError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # markup would swallow the [defaults] in help texts
    help="Lip-sync a video to a voice, on your own machine.",
)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        from lipsync_engine.utils import package_version

        out.print(f"lipsync {package_version()}", highlight=False)
        raise typer.Exit


@app.callback()
def handle_options(
    version_option: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Lip-sync a video to a voice, on your own machine."""


app.command("sync")(sync.sync_video)
app.command("multi")(multi.sync_speakers)
app.command("portrait")(portrait.animate_portrait)
app.command("batch")(batch.sync_batch)
app.command("verify")(verify.verify_file)
app.command("score")(score.score_video_file)
app.command("probe")(probe.probe_file)
app.command("faces")(faces.report_video_faces)
app.command("serve", context_settings=server.PASS_THROUGH)(server.run_server)
app.command("keys", context_settings=server.PASS_THROUGH)(server.manage_keys)
app.command("cluster", context_settings=server.PASS_THROUGH)(server.manage_cluster)
app.command("audit", context_settings=server.PASS_THROUGH)(server.export_audit)
app.command("backup", context_settings=server.PASS_THROUGH)(server.back_up)
app.command("restore", context_settings=server.PASS_THROUGH)(server.restore_backup)
app.command("db", context_settings=server.PASS_THROUGH)(server.copy_database)
app.command("doctor")(doctor.show_environment)
app.add_typer(weights_app, name="weights")


def main() -> NoReturn:
    """Run the command and turn errors into one line and an exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, _raise_cancelled)
    try:
        status = app(standalone_mode=False)
    except LipSyncError as error:
        print_error(error.code, error.message)
        sys.exit(error.exit_status)
    except typer.Abort:
        sys.exit(EXIT_STATUS[ErrorCode.CANCELLED])
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's own usage errors
            error.show()
            sys.exit(error.exit_code)
        raise
    sys.exit(status if isinstance(status, int) else 0)  # commands such as `verify` return their status


def _raise_cancelled(signum: int, frame: FrameType | None) -> None:
    raise Cancelled
