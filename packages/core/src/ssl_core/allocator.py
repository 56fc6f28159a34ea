"""The memory allocator of the C library, which costs training on CPUs up to half of its speed unless told not to."""

import ctypes

# Options of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let freed memory stay with the process, for the tensors of the next step.

    By default glibc maps each large block afresh and returns it to the system when it is freed, so that every tensor
    of every step costs page faults again. The price of keeping memory is a peak that may be some tenths higher, through
    fragmentation. The call changes this process alone, from now on.

    Returns:
        Whether the C library is glibc, which alone has these options.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library: musl, macOS's, Windows'
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
