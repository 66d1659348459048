"""Where the repository's files lie, and the folder beside it with files that are not part of it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo"
DEMO_VIDEO = DEMO / "presenter.mp4"
DEMO_VOICE = DEMO / "voice.wav"
SHARED = ROOT.parent / "shared"
"""Real media, published weights and parity packs; tests that need one are skipped where it is missing."""
