"""Puts limits and a fence around its own process, then becomes the program that it was given.

    python launch.py PARENT_PID MEMORY_BYTES CPU_S N_FILES FILE… PROGRAM ARGUMENTS…

`run` starts every FFmpeg this way: all of it holds before the program's first instruction, and on Linux the
kernel kills it when its parent dies, however that happens. Only the standard library, so that it starts in
a few milliseconds; it knows nothing of this package.

0 means no limit. A FILE is a path after `r` or `w`: it may be read, or written too; with none given files are
not fenced. On Linux the program gains no privileges, opens no sockets (seccomp) and touches no other files
(Landlock). What a kernel does not offer is left out, and `isolation` says so.
"""

import ctypes
import os
import resource
import signal
import struct
import sys

NOT_STARTED = 127

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 13  # EACCES
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
X32 = 0x40000000
"""From there on the kernel takes x86-64's calls by other numbers."""

REFUSED = {
    # The machine's name for auditing; then socket, socketpair, ptrace, process_vm_readv, process_vm_writev,
    # bpf, userfaultfd, perf_event_open, add_key, request_key, keyctl, mount, unshare, setns, and
    # io_uring_setup, which opens sockets too.
    "x86_64": (0xC000003E, (41, 53, 101, 310, 311, 321, 323, 298, 248, 249, 250, 165, 272, 308, 425)),
    "aarch64": (0xC00000B7, (198, 199, 117, 270, 271, 280, 282, 241, 217, 218, 219, 40, 97, 268, 425)),
}

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""How many rights on files a version of Landlock knows, from that version on."""

ABSTRACT_SOCKETS, SIGNALS = 1, 2
SCOPES_SINCE = 6


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):  # macOS refuses some limits; the timers of the parent stay
        return


def _refuse_calls(libc: ctypes.CDLL, machine: str) -> None:
    """No sockets, and nothing that looks into other processes or changes what this one is."""
    if machine not in REFUSED:
        return
    name, calls = REFUSED[machine]
    end = len(calls) + 1  # where the refusal stands, counted from the first comparison of a call
    program = [(LOAD, 0, 0, 4), (EQUAL, 0, end + 2, name), (LOAD, 0, 0, 0), (AT_LEAST, end, 0, X32)]
    program += [(EQUAL, end - 1 - number, 0, call) for number, call in enumerate(calls)]
    program += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    whole = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, whole, 0, 0)


def _fence(libc: ctypes.CDLL, files: list[str]) -> None:
    """Nothing but these files and folders can be opened, and no process outside be signalled."""
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    rights = (1 << max(count for since, count in RIGHTS.items() if since <= version)) - 1
    asked = struct.pack("=Q", rights)
    if version >= SCOPES_SINCE:
        asked += struct.pack("=QQ", 0, ABSTRACT_SOCKETS | SIGNALS)
    ruleset = libc.syscall(CREATE_RULESET, asked, ctypes.c_size_t(len(asked)), 0)
    if ruleset < 0:
        return
    for rule in files:
        _allow(libc, ruleset, rule[1:], rule[0] == "w", rights)
    libc.syscall(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, writes: bool, rights: int) -> None:
    try:
        if writes:  # its name is made here: the program may fill this file, not make others
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # the program will find out, and say it
        return
    allowed = READ_FILE | (WRITE_FILE | TRUNCATE if writes else EXECUTE)
    if os.path.isdir(path):  # noqa: PTH112  (pathlib takes longer to import than all of this)
        allowed |= READ_DIR
    rule = struct.pack("=Qi", allowed & rights, place)
    libc.syscall(ADD_RULE, ruleset, 1, rule, 0)
    os.close(place)


def main(arguments: list[str]) -> int:
    parent, memory_bytes, cpu_s, n_files = (int(number) for number in arguments[:4])
    files, command = arguments[4 : 4 + n_files], arguments[4 + n_files :]
    _limit(resource.RLIMIT_CORE, 0)
    if memory_bytes:
        _limit(resource.RLIMIT_AS, memory_bytes)
    if cpu_s:
        _limit(resource.RLIMIT_CPU, cpu_s)
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it died before that
            return NOT_STARTED
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if files:
            _fence(libc, files)
        _refuse_calls(libc, os.uname().machine)
    try:
        os.execv(command[0], command)
    except OSError as error:
        sys.stderr.write(f"[fatal] {error.strerror}\n")
    return NOT_STARTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
