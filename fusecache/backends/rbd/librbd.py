"""What Debian's Python bindings of librados and librbd lack: results without a callback.

Owns the C signatures (``librados.h``, ``librbd.h`` of Ceph 16.2). It must not know what they are used for.

The bindings call back into Python for every request, on a thread that has to wait for the interpreter and makes the
event loop wait in turn; that costs more than the request. librbd can also count results on an eventfd
(``rbd_set_image_notification``) and hand them out when it is asked (``rbd_poll_io_events``), without any such thread.

Each library is loaded twice: through :data:`WAITING` the interpreter's lock is given up, for calls that wait for the
cluster; through :data:`QUICK` it is kept, for calls that return at once. The latter must never be used on a client that
was given a Python function to call.
"""

import ctypes
import errno
import os
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_ssize_t, c_uint64, c_void_p
from typing import Any, Final

from fusecache.api import FusecacheError

EVENTFD: Final = 2
"""``EVENT_TYPE_EVENTFD``."""

_LIBRADOS: Final = {
    "rados_create2": (c_int, [POINTER(c_void_p), c_char_p, c_char_p, c_uint64]),
    "rados_conf_read_file": (c_int, [c_void_p, c_char_p]),
    "rados_conf_set": (c_int, [c_void_p, c_char_p, c_char_p]),
    "rados_connect": (c_int, [c_void_p]),
    "rados_shutdown": (None, [c_void_p]),
    "rados_ioctx_create": (c_int, [c_void_p, c_char_p, POINTER(c_void_p)]),
    "rados_ioctx_set_namespace": (None, [c_void_p, c_char_p]),
    "rados_ioctx_destroy": (None, [c_void_p]),
}
_LIBRBD: Final = {
    "rbd_open_by_id_read_only": (c_int, [c_void_p, c_char_p, POINTER(c_void_p), c_char_p]),
    "rbd_close": (c_int, [c_void_p]),
    "rbd_set_image_notification": (c_int, [c_void_p, c_int, c_int]),
    "rbd_aio_create_completion": (c_int, [c_void_p, c_void_p, POINTER(c_void_p)]),
    "rbd_aio_read": (c_int, [c_void_p, c_uint64, c_size_t, c_void_p, c_void_p]),
    "rbd_poll_io_events": (c_int, [c_void_p, c_void_p, c_int]),
    "rbd_aio_get_return_value": (c_ssize_t, [c_void_p]),
    "rbd_aio_release": (None, [c_void_p]),
}


class Functions:
    """The functions of both libraries, by their C names.

    Args:
        load: how a library is loaded.

    Raises:
        OSError: one is not installed.
        AttributeError: it lacks a function.
    """

    def __init__(self, load: type[ctypes.CDLL]) -> None:
        for library, functions in (("librados.so.2", _LIBRADOS), ("librbd.so.1", _LIBRBD)):
            loaded = load(library)
            for name, (result, arguments) in functions.items():
                function = getattr(loaded, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name} is not among the functions that are declared")


WAITING: Final = Functions(ctypes.CDLL)
QUICK: Final = Functions(ctypes.PyDLL)


def checked(result: int, what: str) -> int:
    """Return *result*.

    Raises:
        FusecacheError: it is a negative errno.
    """
    if result < 0:
        name = errno.errorcode.get(-result, str(result))
        raise FusecacheError(f"{what} failed with {name}: {os.strerror(-result)}")
    return result
