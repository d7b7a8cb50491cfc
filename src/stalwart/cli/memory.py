"""Keep freed memory in the process, where glibc is present.

glibc returns every block above 32 MiB to the system and faults it in again, page by page, at the next allocation; for
tensor work that costs more than the work itself. The command line asks it not to; ``--system-malloc`` leaves it alone.
As a library stalwart never does this.
"""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER_TRIM = 2**31 - 1
_PAD = 64 * 2**20


def keep_memory() -> bool:
    """Tell glibc's malloc to keep freed memory; return whether there was a glibc to tell."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(option, value)
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER_TRIM), (_M_TOP_PAD, _PAD))
    )
