"""Memory that is freed stays with the process."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> None:
    """Have large blocks of memory reused, where the C library is glibc; nothing elsewhere.

    By default it returns them to the system and asks for fresh ones, which the system must clear: for work that goes
    layer by layer that is a quarter of the processor time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
