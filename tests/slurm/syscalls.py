"""What a process asks of its kernel that changes the world, and how a tracer stops it there.

ptrace and seccomp through ctypes: no program to install, every call of every thread and child seen
by the kernel itself, and calls that change nothing run at full speed.
"""

import contextlib
import ctypes
import os
import platform
import signal
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long
TRACEME, CONT, SETOPTIONS, GET_SYSCALL_INFO = 0, 7, 0x4200, 0x420E
# Follow forks, vforks and clones, see exec, stop where the filter says, die with the tracer.
OPTIONS = 2 | 4 | 8 | 0x10 | 0x80 | 0x100000
EVENT_EXEC, EVENT_SECCOMP = 4, 7
WALL = 0x40000000
INFO_SIZE, INFO_AT = 88, 24  # struct ptrace_syscall_info; where number and arguments begin
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2
ALLOW, TRACE = 0x7FFF0000, 0x7FF00000
AT_FDCWD = -100
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
PATH_BYTES = 4096
# Where libc looks up a user or a host it asks a cache of names first: nothing comes of a question.
NAMES_ARE_CACHED_AT = "/nscd/socket"

# By machine: the architecture as seccomp has it, and the numbers of the calls.
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# name: (x86_64, aarch64, where the path is: argument of a directory and of a name, or of a file)
CALLS: dict[str, tuple[int | None, int | None, tuple[int | None, int | None]]] = {
    "open": (2, None, (None, 0)),
    "creat": (85, None, (None, 0)),
    "openat": (257, 56, (0, 1)),
    "openat2": (437, 437, (0, 1)),
    "write": (1, 64, (0, None)),
    "pwrite64": (18, 68, (0, None)),
    "writev": (20, 66, (0, None)),
    "pwritev": (296, 70, (0, None)),
    "pwritev2": (328, 287, (0, None)),
    "sendfile": (40, 71, (0, None)),
    "copy_file_range": (326, 285, (2, None)),
    "ftruncate": (77, 46, (0, None)),
    "truncate": (76, 45, (None, 0)),
    "fallocate": (285, 47, (0, None)),
    "fsync": (74, 82, (0, None)),
    "fdatasync": (75, 83, (0, None)),
    "rename": (82, None, (None, 1)),
    "renameat": (264, 38, (2, 3)),
    "renameat2": (316, 276, (2, 3)),
    "link": (86, None, (None, 1)),
    "linkat": (265, 37, (2, 3)),
    "symlink": (88, None, (None, 1)),
    "symlinkat": (266, 36, (1, 2)),
    "unlink": (87, None, (None, 0)),
    "unlinkat": (263, 35, (0, 1)),
    "rmdir": (84, None, (None, 0)),
    "mkdir": (83, None, (None, 0)),
    "mkdirat": (258, 34, (0, 1)),
    "chmod": (90, None, (None, 0)),
    "fchmod": (91, 52, (0, None)),
    "fchmodat": (268, 53, (0, 1)),
    "execve": (59, 221, (None, 0)),
    "execveat": (322, 281, (0, 1)),
    "connect": (42, 203, (0, None)),
    "sendto": (44, 206, (0, None)),
    "sendmsg": (46, 211, (0, None)),
}


def _numbers() -> dict[int, str]:
    column = list(ARCHITECTURES).index(platform.machine())
    return {row[column]: name for name, row in CALLS.items() if row[column] is not None}  # type: ignore[misc]


NUMBERS = _numbers()


@dataclass(frozen=True)
class Made:
    """A call about to be made: by which program, on which path, `socket` or `pipe`."""

    name: str
    path: str
    program: str


def trace(request: int, pid: int, address: int, data: int | ctypes.Array[ctypes.c_char]) -> None:
    """One ptrace request.

    Raises:
        OSError: what the kernel says.
    """
    pointer = data if isinstance(data, int) else ctypes.addressof(data)
    if libc.ptrace(request, pid, address, pointer) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request:#x}: {os.strerror(number)}")


def be_traced() -> None:
    """In a new child: stop for the tracer, then before every call of CALLS."""
    trace(TRACEME, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    _install_filter()


def _install_filter() -> None:
    numbers = sorted(NUMBERS)
    last = len(numbers) + 4
    # Instructions: code, jumps when true and when false, operand. The last two are the verdicts.
    program = [(0x20, 0, 0, 4)]  # the architecture
    program += [(0x15, 0, last - 3, ARCHITECTURES[platform.machine()])]
    program += [(0x20, 0, 0, 0)]  # the number
    for place, number in enumerate(numbers, start=3):
        program += [(0x15, last - place - 1, 0, number)]
    program += [(0x06, 0, 0, ALLOW)]
    program += [(0x06, 0, 0, TRACE)]
    code = b"".join(struct.pack("HBBI", *each) for each in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    for arguments in ((NO_NEW_PRIVILEGES, 1, 0), (SET_SECCOMP, FILTER, header)):
        if libc.prctl(*arguments, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl: no filter of system calls")


def seen(pid: int) -> Made | None:
    """The call at which a thread stopped, None if it changes nothing that outlives the process."""
    buffer = ctypes.create_string_buffer(INFO_SIZE)
    trace(GET_SYSCALL_INFO, pid, INFO_SIZE, buffer)
    number, *arguments = struct.unpack_from("7Q", buffer.raw, INFO_AT)
    name = NUMBERS[number]
    path = _path(pid, name, arguments)
    if name.startswith("open") and not _opens_for_writing(pid, name, arguments):
        return None
    if path.startswith(("/dev/", "/proc/", "pipe:", "anon_inode:", "/memfd:")):
        return None
    if name == "connect" and _address(pid, arguments).endswith(NAMES_ARE_CACHED_AT):
        return None
    kind = "socket" if path.startswith("socket:") else path
    return Made(name, kind, _program(pid))


def _opens_for_writing(pid: int, name: str, arguments: list[int]) -> bool:
    flags = arguments[1] if name == "open" else arguments[2]
    if name == "openat2":
        flags = struct.unpack("Q", _memory(pid, flags, 8))[0]
    return bool(flags & WRITING)


def _address(pid: int, arguments: list[int]) -> str:
    """Where a socket of files connects to, empty for the others."""
    address = _memory(pid, arguments[1], arguments[2])
    family = int.from_bytes(address[:2], sys.byteorder)
    return address[2:].split(b"\0")[0].decode(errors="replace") if family == socket.AF_UNIX else ""


def _path(pid: int, name: str, arguments: list[int]) -> str:
    directory, place = CALLS[name][2]
    if place is None:
        assert directory is not None
        return _link(pid, f"fd/{arguments[directory]}")
    raw = _memory(pid, arguments[place], PATH_BYTES).split(b"\0")[0]
    path = raw.decode("utf-8", "surrogateescape")
    if path.startswith("/"):
        return path
    number = AT_FDCWD if directory is None else ctypes.c_int(arguments[directory]).value
    base = _link(pid, "cwd" if number == AT_FDCWD else f"fd/{number}")
    return os.path.normpath(f"{base}/{path}")


def _link(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{pid}/{name}").readlink())
    return ""


def _memory(pid: int, address: int, size: int) -> bytes:
    """Up to `size` bytes, less where the mapping ends before."""
    file = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        first = min(size, page - address % page)
        data = os.pread(file, first, address)
        if b"\0" not in data and first < size:
            with contextlib.suppress(OSError):
                data += os.pread(file, size - first, address + first)
        return data
    finally:
        os.close(file)


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def process_of(thread: int) -> int:
    """The process that a thread belongs to; itself if it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{thread}/status").read_text().splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    return thread
