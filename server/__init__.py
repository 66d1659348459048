"""The REST server: HTTP API, durable jobs, workers."""
