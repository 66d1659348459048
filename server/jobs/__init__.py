"""Jobs: what a job is and how it goes on. No HTTP; SQL only through the store.

state      states, attempts, transitions (pure)
request    a client's request
service    submits, claims, changes, cancels and deletes jobs; notifies waiters
admission  the check before a job runs: input hashes, the operator's hook
inputs     inputs as local files
webhooks   delivery of the outbox
"""
