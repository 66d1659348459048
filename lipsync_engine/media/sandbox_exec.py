"""Restrict the own process, then replace it by the program to run.

    python sandbox_exec.py PARENT_PID MEMORY_BYTES CPU_S N_RULES RULE… PROGRAM ARGUMENTS…

`process` starts every FFmpeg this way. All restrictions hold before the program's first instruction, and on
Linux the kernel kills it when its parent dies. Only the standard library is used, so that it starts in a few
milliseconds; nothing of this package is imported.

A limit of 0 means none. A rule is a path after `r` (may be read) or `w` (may be written as well), or `s` for
all of `SYSTEM_PATHS`; without rules files are not restricted. On Linux the program gains no privileges,
opens no sockets (seccomp) and no other files (Landlock). What a kernel does not offer is skipped;
`sandbox.check_sandbox` reports it.
"""

import ctypes
import os
import resource
import signal
import struct
import sys

EXIT_NOT_STARTED = 127

SYSTEM_PATHS = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/opt", "/nix/store", "/snap", "/etc/ld.so.cache",
    "/etc/alternatives", "/sys/devices/system/cpu", "/dev/urandom",
)  # fmt: skip
"""Where programs and their libraries lie; no user's files do."""

# linux/prctl.h, linux/seccomp.h, linux/filter.h: names as there.
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW, SECCOMP_RET_EACCES, SECCOMP_RET_ENOSYS = 0x7FFF0000, 0x00050000 | 13, 0x00050000 | 38
BPF_LD_W_ABS, BPF_JEQ, BPF_JGE, BPF_JSET, BPF_RET = 0x20, 0x15, 0x35, 0x45, 0x06
X32_SYSCALL_BIT = 0x40000000
"""From this number on x86-64 counts its system calls a second time, for the x32 ABI."""

BLOCKED_SYSCALLS = {
    # AUDIT_ARCH_*; then socket, socketpair, ptrace, process_vm_readv, process_vm_writev, bpf, userfaultfd,
    # perf_event_open, add_key, request_key, keyctl, mount, unshare, setns, io_uring_setup, which opens
    # sockets too, pidfd_open, and pidfd_getfd, which takes files of other processes.
    "x86_64": (
        0xC000003E,
        (41, 53, 101, 310, 311, 321, 323, 298, 248, 249, 250, 165, 272, 308, 425, 434, 438),
    ),
    "aarch64": (
        0xC00000B7,
        (198, 199, 117, 270, 271, 280, 282, 241, 217, 218, 219, 40, 97, 268, 425, 434, 438),
    ),
}

CLONE = {"x86_64": 56, "aarch64": 220}
"""Starts threads and processes; refused with any flag of `NEW_NAMESPACES`."""

NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID and _NEWNET."""

CLONE3 = 435
"""Its flags lie in memory, which a filter cannot read. "Not implemented" makes the C library use clone."""

# linux/landlock.h: names as there, LANDLOCK_ACCESS_FS_ and LANDLOCK_SCOPE_ left out.
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_ADD_RULE, SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_CREATE_RULESET_VERSION, LANDLOCK_RULE_PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
N_RIGHTS_SINCE = {1: 13, 2: 14, 3: 15, 5: 16}
"""ABI version of Landlock: number of rights on files that it knows."""

ABSTRACT_UNIX_SOCKET, SIGNAL = 1, 2
SCOPES_SINCE = 6


def _set_limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):  # macOS refuses some limits; the parent's timers remain
        return


def _block_syscalls(libc: ctypes.CDLL, machine: str) -> None:
    """Block sockets, access to other processes and changes of the own namespaces."""
    if machine not in BLOCKED_SYSCALLS:
        return
    audit_arch, numbers = BLOCKED_SYSCALLS[machine]
    allow = 8 + len(numbers)  # positions in the program
    refuse, not_implemented = allow + 1, allow + 2
    program = [(BPF_LD_W_ABS, 0, 0, 4), (BPF_JEQ, 0, refuse - 2, audit_arch), (BPF_LD_W_ABS, 0, 0, 0)]
    program += [(BPF_JGE, refuse - 4, 0, X32_SYSCALL_BIT), (BPF_JEQ, not_implemented - 5, 0, CLONE3)]
    for number in numbers:
        program.append((BPF_JEQ, refuse - len(program) - 1, 0, number))
    program.append((BPF_JEQ, 0, allow - len(program) - 1, CLONE[machine]))
    program += [(BPF_LD_W_ABS, 0, 0, 16), (BPF_JSET, refuse - len(program) - 2, 0, NEW_NAMESPACES)]
    returns = (SECCOMP_RET_ALLOW, SECCOMP_RET_EACCES, SECCOMP_RET_ENOSYS)
    program += [(BPF_RET, 0, 0, value) for value in returns]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    sock_fprog = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, sock_fprog, 0, 0)


def _restrict_files(libc: ctypes.CDLL, rules: list[str]) -> None:
    """Allow only the files and folders of `rules`; processes outside cannot be signalled."""
    version = libc.syscall(
        SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION
    )
    if version < 1:
        return
    rights = (1 << max(count for since, count in N_RIGHTS_SINCE.items() if since <= version)) - 1
    attributes = struct.pack("=Q", rights)
    if version >= SCOPES_SINCE:
        attributes += struct.pack("=QQ", 0, ABSTRACT_UNIX_SOCKET | SIGNAL)
    ruleset = libc.syscall(SYS_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return
    for path in SYSTEM_PATHS if "s" in rules else ():
        _allow_path(libc, ruleset, path, False, rights)
    for rule in rules:
        if rule == "s":
            continue
        _allow_path(libc, ruleset, rule[1:], rule[0] == "w", rights)
    libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow_path(libc: ctypes.CDLL, ruleset: int, path: str, writable: bool, rights: int) -> None:
    try:
        if writable:  # created here: the program may fill this file, not create others
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # the program will meet the same error and report it
        return
    allowed = READ_FILE | (WRITE_FILE | TRUNCATE if writable else EXECUTE)
    if os.path.isdir(path):  # noqa: PTH112  (importing pathlib takes longer than all of this)
        allowed |= READ_DIR
    attributes = struct.pack("=Qi", allowed & rights, descriptor)
    libc.syscall(SYS_LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, attributes, 0)
    os.close(descriptor)


def main(arguments: list[str]) -> int:
    parent, memory_bytes, cpu_s, n_rules = (int(number) for number in arguments[:4])
    rules, command = arguments[4 : 4 + n_rules], arguments[4 + n_rules :]
    _set_limit(resource.RLIMIT_CORE, 0)
    if memory_bytes:
        _set_limit(resource.RLIMIT_AS, memory_bytes)
    if cpu_s:
        _set_limit(resource.RLIMIT_CPU, cpu_s)
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # the parent died before the line above
            return EXIT_NOT_STARTED
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if rules:
            _restrict_files(libc, rules)
        _block_syscalls(libc, os.uname().machine)
    try:
        os.execv(command[0], command)
    except OSError as error:
        sys.stderr.write(f"[fatal] {error.strerror}\n")
    return EXIT_NOT_STARTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
