"""Memory that the C library keeps."""

import ctypes


def give_back() -> None:
    """Return to the machine what was freed between blocks that stay.

    glibc keeps it for later, and a model that is made layer by layer leaves many such
    holes. Nothing where the C library has no such call.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
