"""Workers: one process per device, the parent's side of it, and the program that runs in it.

messages         what parent and worker send each other
supervisor       one device worker per device
device_worker    starts, restarts, recycles and quarantines one worker process
process          the asyncio handle of a worker process
job_runner       one attempt of a job, or one shared segment
segment_sharing  one job rendered by many workers: the parent's side
segment_client   the same, the worker's side
registry         the workers of all processes
cli_child        a `lipsync` command in a child process, for hostile files
    verification     checks a file's credentials there
    face_reports     reports the faces of a video there
main             the worker process; the only module that loads the engine
"""
