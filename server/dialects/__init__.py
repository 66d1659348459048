"""Foreign ways to ask for a job and to be told about it: one file each."""
