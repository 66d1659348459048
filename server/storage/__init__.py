"""Files and the way out: objects, outgoing HTTP, signed links.

blobs      a folder or S3
transport  the only outgoing HTTP: guarded fetch, webhook POST
links      signed names
"""
