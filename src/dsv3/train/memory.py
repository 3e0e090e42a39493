"""glibc's allocator, told to keep freed memory instead of returning it to the kernel."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Stop malloc from returning large blocks to the kernel; False where there is no glibc.

    A training step frees and takes the same hundreds of megabytes again; by default every one
    of those pages is given back, zeroed and faulted in anew.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = [
        mallopt(_M_MMAP_THRESHOLD, 1 << 30),
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1),
        mallopt(_M_TOP_PAD, 64 << 20),
    ]
    return all(result == 1 for result in kept)
