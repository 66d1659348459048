"""Command lines of the server besides `lipsync serve`: keys, audit export, backup, cluster."""
