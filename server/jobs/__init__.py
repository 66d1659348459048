"""Jobs: their states, requests and changes. No HTTP; SQL only through the store.

state      states, attempts, transitions (pure)
request    a client's request, independent of the API
service    submits, claims, changes and cancels jobs, and wakes those who wait for one
admission  the check before a job runs: input hashes, the operator's hook
inputs     downloads inputs and opens uploads
webhooks   delivers webhooks from the outbox
"""
