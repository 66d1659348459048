"""HTTP: one file per API, and what they share.

context, auth, errors, schemas, submission   shared by every API
wavespeed, wavespeed_models, studio           the vendors' dialects
native, batches                               our own API
uploads, playground, admin                    files and links, the web page, operations
fast_poll, http_limits                        in front of the router
"""
