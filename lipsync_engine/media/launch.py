"""Puts limits on its own process, then becomes the program that it was given.

    python launch.py PARENT_PID MEMORY_BYTES CPU_S PROGRAM ARGUMENTS…

`run` starts every FFmpeg this way: limits hold before the program's first instruction, and on Linux the
kernel kills it when its parent dies, however that happens. Only the standard library, so that it starts in
a few milliseconds; it knows nothing of this package. 0 means no limit.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
NOT_STARTED = 127


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):  # macOS refuses some limits; the timers of the parent stay
        return


def main(arguments: list[str]) -> int:
    parent, memory_bytes, cpu_s = (int(number) for number in arguments[:3])
    _limit(resource.RLIMIT_CORE, 0)
    if memory_bytes:
        _limit(resource.RLIMIT_AS, memory_bytes)
    if cpu_s:
        _limit(resource.RLIMIT_CPU, cpu_s)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it died before that
            return NOT_STARTED
    try:
        os.execv(arguments[3], arguments[3:])
    except OSError as error:
        sys.stderr.write(f"[fatal] {error.strerror}\n")
    return NOT_STARTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
