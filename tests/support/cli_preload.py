"""Imported once by the fork server of `cli_process`: what most commands import, which takes seconds."""

from __future__ import annotations

import os

os.environ["COLUMNS"] = "200"  # the width of the command's output, which rich reads when it is imported

import lipsync_engine.batch
import lipsync_engine.cli
import lipsync_engine.face_report
import lipsync_engine.models.latentsync.model
import lipsync_engine.pipeline
import lipsync_engine.sync_score  # noqa: F401
