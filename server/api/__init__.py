"""Everything that knows HTTP: one file per API, and what they share.

context, auth, errors, schemas, submission   what every API uses
wavespeed, wavespeed_models, studio           the vendors' dialects
native, batches, uploads, playground          our own
fast_poll, http_limits                        in front of the router
"""
