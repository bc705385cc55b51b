"""Runs one untrusted program and its tests; started as a script in a process of its own, standard library only.

It reads a job as JSON from stdin, gives up its rights, runs the program, then each test, and reports each result on the
pipe that was its stdout. Rights are given up by rlimits, by a seccomp filter that lists what is allowed (no process, no
connection, no signal to others, no change to any file; threads stay possible), and where the kernel has Landlock, by
rules that leave only Python's own files to read.
"""

import ast
import builtins
import ctypes
import json
import operator
import os
import platform
import resource
import signal
import struct
import sys
import types

# name -> system call number on x86_64 and aarch64 (None: this machine has no such call)
ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "select": (23, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "nanosleep": (35, 101),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "recvfrom": (45, 207),
    "exit": (60, 93),
    "uname": (63, 160),
    "getcwd": (79, 17),
    "readlink": (89, None),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "sigaltstack": (131, 132),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "arch_prctl": (158, None),
    "gettid": (186, 178),
    "time": (201, None),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "getdents64": (217, 61),
    "set_tid_address": (218, 96),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "epoll_wait": (232, None),
    "epoll_ctl": (233, 21),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "epoll_pwait": (281, 22),
    "epoll_create1": (291, 20),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "statx": (332, 291),
    "rseq": (334, 293),
    "faccessat2": (439, 439),
}
CHECKED = {  # allowed for some arguments
    "open": (2, None),
    "openat": (257, 56),
    "clone": (56, 220),
    "clone3": (435, 435),
    "prlimit64": (302, 261),
    "tgkill": (234, 131),
    "ioctl": (16, 29),
    "fcntl": (72, 25),
    "socketpair": (53, 199),
    "sendto": (44, 206),
}
TERMINAL_QUESTIONS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIO(N)CLEX
DESCRIPTOR_FLAGS = (0, 1, 2, 3, 4, 1030)  # F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL F_DUPFD_CLOEXEC
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
# O_APPEND and O_DIRECTORY are harmless without these: O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CLONE_THREAD = 0x10000
STREAM_TYPES = tuple(1 | flags for flags in (0, 0x800, 0x80000, 0x80800))  # SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC
EPERM, ENOSYS = 1, 38
RET_ALLOW, RET_ERRNO, RET_KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: ld [k], jeq, jset, ret


def _instruction(code, k, true=0, false=0):
    return struct.pack("HBBI", code, true, false, k)


def _argument(number, high=False):
    return _instruction(LOAD, 16 + 8 * number + 4 * high)


def _one_of(number, values, allow, refuse):
    """Allow a call whose argument is one of the values."""
    checks = [_instruction(EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)]
    return [_argument(number), *checks, refuse, allow]


def _rule(number, body):
    """Run `body`, which returns, if the system call is `number`; else fall through."""
    return [_instruction(EQUAL, number, 0, len(body)), *body]


def seccomp_program(machine, pid):
    """The filter as BPF bytes."""
    column, architecture = ARCHITECTURES[machine]
    allow, refuse = _instruction(RETURN, RET_ALLOW), _instruction(RETURN, RET_ERRNO | EPERM)
    program = [_instruction(LOAD, 4), _instruction(EQUAL, architecture, 1, 0), _instruction(RETURN, RET_KILL)]
    program.append(_instruction(LOAD, 0))
    for numbers in ALLOWED.values():
        if numbers[column] is not None:
            program += _rule(numbers[column], [allow])
    bodies = {
        "open": [_argument(1), _instruction(ANY_BIT, WRITING, 0, 1), refuse, allow],
        "openat": [_argument(2), _instruction(ANY_BIT, WRITING, 0, 1), refuse, allow],
        "clone": [_argument(0), _instruction(ANY_BIT, CLONE_THREAD, 0, 1), allow, refuse],
        "clone3": [_instruction(RETURN, RET_ERRNO | ENOSYS)],  # its flags lie in memory; glibc then uses clone
        "prlimit64": [  # reading limits, of itself: the pointer to new ones is null
            *(_argument(0), _instruction(EQUAL, 0, 0, 5)),
            *(_argument(2), _instruction(EQUAL, 0, 0, 3)),
            *(_argument(2, high=True), _instruction(EQUAL, 0, 0, 1), allow, refuse),
        ],
        "ioctl": _one_of(1, TERMINAL_QUESTIONS, allow, refuse),  # others can change files that are open for reading
        "fcntl": _one_of(1, DESCRIPTOR_FLAGS, allow, refuse),  # others can have signals sent
        "socketpair": [  # asyncio wakes itself up by one; its two ends are connected to each other for good
            *(_argument(0), _instruction(EQUAL, 1, 1, 0), refuse),  # AF_UNIX
            *_one_of(1, STREAM_TYPES, allow, refuse),
        ],
        "sendto": [  # without an address
            *(_argument(4), _instruction(EQUAL, 0, 0, 3)),
            *(_argument(4, high=True), _instruction(EQUAL, 0, 0, 1), allow, refuse),
        ],
        "tgkill": [_argument(0), _instruction(EQUAL, pid, 0, 1), allow, refuse],  # abort() of this process
    }
    for name, body in bodies.items():
        if CHECKED[name][column] is not None:
            program += _rule(CHECKED[name][column], body)
    return b"".join([*program, refuse])


def enter_seccomp():
    """Give up everything the filter does not name, for good.

    Raises:
        OSError: this kernel or machine has no seccomp filters.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(f"no system call table for {machine}")
    program = seccomp_program(machine, os.getpid())
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, filter_mode, header, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel refuses a seccomp filter")


def limit(job):
    """Rlimits of memory, processor time, file size, core dumps and open files."""
    memory = job["memory_mb"] << 20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_seconds"], job["cpu_seconds"] + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def die_with_parent(parent):
    """Be killed when the thread that waits for this process ends, killed or not."""
    parent_death_signal = 1
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def readable():
    """What an answer may read: Python, its libraries, and what these look up about the machine."""
    folders = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path, "/usr", "/lib", "/lib64", os.getcwd()}
    files = ("/etc/ld.so.cache", "/etc/localtime", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat")
    devices = ("/dev/null", "/dev/urandom", "/dev/random", "/dev/zero", "/sys/devices/system/cpu", "/sys/fs/cgroup")
    return [path for path in (*folders, *files, *devices) if path and path != "/" and os.path.exists(path)]


def landlock_version():
    """The version of Landlock in this kernel; 0 where it has none."""
    return max(0, ctypes.CDLL(None, use_errno=True).syscall(444, None, ctypes.c_size_t(0), 1))


def enter_landlock(paths):
    """Leave only `paths` and what lies below them to read, for good; nothing where the kernel has no Landlock."""
    if not landlock_version():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    every_right, read_file, read_folder = (1 << 13) - 1, 1 << 2, 1 << 3  # the rights of version 1
    handled = struct.pack("Q", every_right)
    ruleset = libc.syscall(444, handled, ctypes.c_size_t(len(handled)), 0)
    for path in paths:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = read_file | (read_folder if os.path.isdir(path) else 0)
        libc.syscall(445, ruleset, 1, struct.pack("=Qi", rights, place), 0)
        os.close(place)
    no_new_privileges = 38
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.syscall(446, ruleset, 0):
        raise OSError(ctypes.get_errno(), "the kernel refuses Landlock rules")
    os.close(ruleset)


class OutOfTimeError(BaseException):
    """A step took longer than its share of processor time."""


def out_of_time(signum, frame):
    raise OutOfTimeError


# what decides whether a result is the expected one; a class of the answer's own may define any of it
DECIDING = frozenset(
    f"__{name}__"
    for name in (
        *("eq", "ne", "lt", "le", "gt", "ge", "contains", "sub", "rsub", "truediv", "rtruediv", "abs", "round"),
        *("array", "array_ufunc", "array_function"),
    )
)
OPERATORS = {
    **{name: getattr(operator, name.lower()) for name in ("Eq", "Lt", "Gt", "Sub")},
    **{"NotEq": operator.ne, "LtE": operator.le, "GtE": operator.ge, "Div": operator.truediv},
    **{"In": lambda a, b: a in b, "NotIn": lambda a, b: a not in b},
}
SCALARS = frozenset((int, float, bool, str, bytes, complex, type(None)))


def known_classes(sources):
    """Every class there is before the answer runs: Python's own, and those of the libraries that `sources` import."""
    for source in sources:
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
        for name in dict.fromkeys(names):
            attempt(f"import {name}", "<import>", {}, 5.0)
    found, waiting = set(), [object]
    while waiting:
        new = [cls for cls in type.__subclasses__(waiting.pop()) if cls not in found]
        found.update(new)
        waiting += [cls for cls in new if cls is not type]
    found |= {type, object}
    return {cls for cls in found if not cls.__module__.startswith("unittest.mock")}  # ANY equals everything


class Referee:
    """Compares for the tests: an object of a class that the answer wrote never decides about a plain value."""

    def __init__(self, known):
        self.known = known

    def compare(self, name, a, b, allowed=()):
        """The result of an operator. allowed: names of classes that the test defines, or makes objects of."""
        return OPERATORS[name](*self.pair(a, b, allowed))

    def pair(self, a, b, allowed=()):
        if self.is_plain(a, allowed) != self.is_plain(b, allowed):
            raise AssertionError("an object of a class of the answer's own would decide whether it is right")
        return a, b

    def is_plain(self, value, allowed):
        waiting, seen = [value], set()
        while waiting:
            item = waiting.pop()
            cls = type(item)
            if cls in SCALARS or id(item) in seen:
                continue
            seen.add(id(item))
            if cls not in self.known and cls.__name__ not in allowed and self._decides(cls):
                return False
            if issubclass(cls, dict):
                waiting += [*dict.keys(item), *dict.values(item)]
            for kind in (list, tuple, set, frozenset):  # by their own methods, which no subclass can replace
                if issubclass(cls, kind):
                    waiting += kind.__iter__(item)
            if (
                cls in self.known
                and cls.__module__ == "numpy"
                and getattr(getattr(item, "dtype", 0), "kind", "") == "O"
            ):
                waiting += item.ravel().tolist()
        return True

    def _decides(self, cls):
        own = [base for base in type.__dict__["__mro__"].__get__(cls) if base not in self.known]
        return any(DECIDING & type.__dict__["__dict__"].__get__(base).keys() for base in own)


def attempt(source, name, namespace, seconds):
    """Whether a piece of source runs to its end without an exception."""
    try:
        code = compile(source, name, "exec", dont_inherit=True)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        exec(code, namespace)
        return True
    except BaseException as error:
        return described(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def described(error):
    """The exception's type and text; the answer's own class may raise, or take for ever, when it is asked for it."""
    try:
        return f"{type(error).__name__}: {error}"[:200]
    except BaseException:
        return f"{type(error).__name__} (its text cannot be read)"[:200]


def main():
    job = json.load(sys.stdin)
    die_with_parent(job["parent"])
    report = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    signal.signal(signal.SIGPROF, out_of_time)
    signal.alarm(job["wall_seconds"])
    limit(job)
    if job["sandbox"]:
        enter_landlock(readable())
        enter_seccomp()
    key = job.pop("key")
    kept = dict(vars(builtins))
    referee = Referee(known_classes([*job["program"], *job["tests"]]))
    judging = {"__compare__": referee.compare, "__pair__": referee.pair}  # `_programs.guarded` writes these names

    def tell(what, result):
        os.write(report, json.dumps([key, what, result]).encode() + b"\n")

    module = sys.modules["answer"] = types.ModuleType("answer")  # pickling and dataclasses look it up there
    ready = True
    for source in job["program"]:
        ready = attempt(source, "<answer>", vars(module), job["test_seconds"])
        if ready is not True:
            break
    tell("program", ready)
    if ready is True:
        for at, test in enumerate(job["tests"]):
            builtins.__dict__.update(kept)  # a program may have put its own len() there
            vars(module).update(judging)
            tell(at, attempt(test, f"<test {at}>", vars(module), job["test_seconds"]))
    tell("end", True)
    os._exit(0)  # nothing that the program registered for the exit runs


if __name__ == "__main__":
    main()
