"""`lipsync serve`, `keys`, `cluster`, `audit`, `backup`, `restore`, `db`: commands of the server.

The server is another package, which this one never imports: its module replaces this process.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def run_server(context: typer.Context) -> None:
    """Serve lip-sync over HTTP; `lipsync serve --help` lists the settings."""
    _exec_module("server", context.args)


def manage_keys(context: typer.Context) -> None:
    """Create, list and revoke the server's API keys."""
    _exec_module("server.cli.keys", context.args)


def manage_cluster(context: typer.Context) -> None:
    """Run workers on all machines of a Ray cluster: up, join, status, drain."""
    _exec_module("server.cli.cluster", context.args)


def export_audit(context: typer.Context) -> None:
    """Export the server's audit log."""
    _exec_module("server.cli.audit_export", context.args)


def back_up(context: typer.Context) -> None:
    """Copy the server's database, files and keys into a folder, also while it runs."""
    _exec_module("server.cli.backup", ["backup", *context.args])


def restore_backup(context: typer.Context) -> None:
    """Copy a backup into the server's data folder."""
    _exec_module("server.cli.backup", ["restore", *context.args])


def copy_database(context: typer.Context) -> None:
    """`db copy --to postgresql://…`: copy the server's SQLite database to PostgreSQL."""
    _exec_module("server.cli.backup", ["db", *context.args])


def _exec_module(module: str, arguments: list[str]) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
