"""`python -m lipsync_engine.cli`: the same as the `lipsync` command."""

from lipsync_engine.cli import main

main()
