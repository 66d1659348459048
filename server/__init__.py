"""The REST server; it begins with the next stage of the project."""
