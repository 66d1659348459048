"""Workers: one process per device, the parent's side of it, and the program that runs in it.

messages         what parent and worker send each other
supervisor       one device worker per device
device_worker    starts, restarts, recycles and quarantines one worker process
process          the asyncio handle of a worker process
job_runner       one attempt of a job, or one shared segment
segment_sharing  one job rendered by many workers: the parent's side
segment_client   the same, the worker's side
registry         the workers of all processes
verification     the child process that checks a file's credentials
main             the worker process; the only module that loads the engine
"""
