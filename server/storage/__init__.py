"""Storage and outgoing HTTP.

blobs      files in a folder or in S3
transport  the only outgoing HTTP: SSRF-safe downloads and webhooks
links      signed URLs
"""
