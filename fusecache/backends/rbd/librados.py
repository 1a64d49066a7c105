"""What Debian's Python binding of librados lacks: results without a callback into Python.

Owns the C signatures (``librados.h`` of Ceph 16.2). It must not know what they are used for.

The binding calls back into Python for every request, on a thread that has to wait for the interpreter and makes the
event loop wait in turn; that costs more than the request. librados calls any C function, and glibc has one that tells
the loop which request has ended: ``putw(3)``, given the completion and a stream, writes the lower half of the
completion's address to it.

The library is loaded twice: through :data:`WAITING` the interpreter's lock is given up, for calls that wait for the
cluster; through :data:`QUICK` it is kept, for calls that return at once. The latter must never be used on a client that
was given a Python function to call.
"""

import ctypes
import errno
import os
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_ssize_t, c_uint64, c_void_p
from typing import Any, Final, TypeAlias

from fusecache.api import FusecacheError

_Signatures: TypeAlias = dict[str, tuple[Any, list[Any]]]

_LIBRADOS: Final[_Signatures] = {
    "rados_create2": (c_int, [POINTER(c_void_p), c_char_p, c_char_p, c_uint64]),
    "rados_conf_read_file": (c_int, [c_void_p, c_char_p]),
    "rados_conf_set": (c_int, [c_void_p, c_char_p, c_char_p]),
    "rados_connect": (c_int, [c_void_p]),
    "rados_getaddrs": (c_int, [c_void_p, POINTER(c_void_p)]),
    "rados_buffer_free": (None, [c_void_p]),
    "rados_shutdown": (None, [c_void_p]),
    "rados_ioctx_create": (c_int, [c_void_p, c_char_p, POINTER(c_void_p)]),
    "rados_ioctx_set_namespace": (None, [c_void_p, c_char_p]),
    "rados_ioctx_destroy": (None, [c_void_p]),
    "rados_aio_create_completion2": (c_int, [c_void_p, c_void_p, POINTER(c_void_p)]),
    "rados_aio_read": (c_int, [c_void_p, c_char_p, c_void_p, c_void_p, c_size_t, c_uint64]),
    "rados_aio_get_return_value": (c_int, [c_void_p]),
    "rados_aio_release": (None, [c_void_p]),
}
_LIBC: Final[_Signatures] = {
    "fdopen": (c_void_p, [c_int, c_char_p]),
    "fclose": (c_int, [c_void_p]),
    "setvbuf": (c_int, [c_void_p, c_char_p, c_int, c_size_t]),
}
_AT_ONCE: Final[_Signatures] = {"read": (c_ssize_t, [c_int, c_void_p, c_size_t])}
_UNBUFFERED: Final = 2
"""``_IONBF`` of glibc."""


class Functions:
    """Functions of a library, by their C names.

    Raises:
        OSError: it is not installed.
        AttributeError: it lacks a function.
    """

    def __init__(self, library: ctypes.CDLL, functions: _Signatures) -> None:
        for name, (result, arguments) in functions.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name} is not among the functions that are declared")


WAITING: Final = Functions(ctypes.CDLL("librados.so.2"), _LIBRADOS)
QUICK: Final = Functions(ctypes.PyDLL("librados.so.2"), _LIBRADOS)
QUICK_LIBC: Final = Functions(ctypes.PyDLL(None), _AT_ONCE)
_libc: Final = Functions(ctypes.CDLL(None), _LIBC)

TELL: Final = ctypes.cast(ctypes.CDLL(None).putw, c_void_p).value
"""The callback: given a stream of :func:`stream_to` as its argument, writes the completion's address modulo 2^32."""


def stream_to(fd: int) -> int:
    """Return a C stream that writes to *fd* at once, and owns it until :func:`close_stream`."""
    stream: int | None = _libc.fdopen(fd, b"w")
    if not stream:
        raise MemoryError
    _libc.setvbuf(stream, None, _UNBUFFERED, 0)
    return stream


def close_stream(stream: int) -> None:
    """Close a stream and its descriptor; no client may be left that was given it."""
    _libc.fclose(stream)


def address_of(cluster: c_void_p) -> str:
    """Return how the cluster names a connected client, as in its blocklist; for messages."""
    text = c_void_p()
    if WAITING.rados_getaddrs(cluster, ctypes.byref(text)) < 0:
        return "unknown"
    try:
        return os.fsdecode(ctypes.string_at(text))
    finally:
        WAITING.rados_buffer_free(text)


def checked(result: int, what: str) -> int:
    """Return *result*.

    Raises:
        FusecacheError: it is a negative errno.
    """
    if result < 0:
        name = errno.errorcode.get(-result, str(result))
        raise FusecacheError(f"{what} failed with {name}: {os.strerror(-result)}")
    return result
