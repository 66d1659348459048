"""`python -m lipsync_engine.cli` is the `lipsync` command."""

from lipsync_engine.cli import main

main()
