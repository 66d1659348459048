"""Command lines of the server beside `lipsync serve`: keys, audit export, cluster."""
