"""The record of the layers above an image, and the guard, in the image's own metadata.

Owns the keys of the image's header object that hold the two, and how they change together. It must not know who may
open an image.

**Keys** of the omap of ``rbd_header.<id>``, as librbd keeps an image's metadata:

``metadata_fusecache_record``
    the text of :mod:`fusecache.backends.records`.
``metadata_conf_rbd_plugins``
    the guard. librbd takes it for its option ``rbd_plugins`` of this one image, a list with commas, and refuses to open
    the image, or anything that is made of it, because it finds no plugin ``fusecache_dirty_on_<host>``; its log says
    so. An image that is open already stays open. The kernel client does not look at it.
    Empty, it is a guard that its own host has lifted, for the few milliseconds of an open.

**Changes** are one operation of RADOS each: atomic, and durable when it is acknowledged. A change by who holds the lock
asserts in the same operation that the exclusive lock is still its own, whether or not it was told otherwise. A guard
is lifted and put back before there is a lock, so these assert that the record is the one that was looked at.
"""

import errno
import re
import struct
import threading
from collections.abc import Callable
from typing import Any, Final

import rados
import trio

from fusecache.api import Identity, ImageRecord
from fusecache.api.errors import CorruptState, Fenced, NotSupported, VolumeReadOnly
from fusecache.backends import records
from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.errors import BLOCKLISTED, error_of
from fusecache.backends.rbd.header import GUARD_KEY, METADATA, RECORD_KEY, Header, encode_string, header_object
from fusecache.backends.rbd.lookup import fetch_header_of

LIFTED: Final = ""
"""A guard that was lifted to open the image."""

_GUARD: Final = "fusecache_dirty_on_"
_GUARD_OMAP: Final = METADATA + GUARD_KEY
_RECORD_OMAP: Final = METADATA + RECORD_KEY
_LONGEST_HOST: Final = 64

_LOCK: Final = encode_string("rbd_lock")
_EXCLUSIVE: Final = b"\x01"
_EQUAL: Final = 1
_ATTEMPTS: Final = 5


def guard_for(host: str) -> str:
    """Return the guard that names *host*: it ends up in the name of a file that librbd looks for."""
    return _GUARD + re.sub(r"[^A-Za-z0-9.-]", "_", host)[:_LONGEST_HOST]


def decoded_record(header: Header, identity: Identity) -> ImageRecord | None:
    """Return the record of an image with that identity; None where it has none of its own.

    Raises:
        CorruptState: it does not parse.
        Fenced: the image is a copy, made without the newer data that a host held of its original.
    """
    if header.record is None:
        return None
    try:
        return records.decode(header.record.decode(errors="surrogateescape"), identity)
    except CorruptState as error:
        raise CorruptState(f"image {header.name!r}: {error}") from error
    except Fenced as error:
        command = f"rbd image-meta remove {header.name} {RECORD_KEY}"
        raise Fenced(
            f"image {header.name!r}: {error}; to use it all the same, remove the record with `{command}`"
        ) from error


def lifted_guard(header: Header, record: ImageRecord | None) -> str | None:
    """Return the guard that must come off before the image can be opened, or is off and must be put back; None where
    there is none.

    Raises:
        CorruptState: there is a guard, and the record names no holder of dirty data.
        NotSupported: somebody else's option is in the guard's place, and librbd might keep dirty data of its own.
    """
    guard = header.guard
    if guard is None:
        return None
    if guard != LIFTED and not guard.startswith(_GUARD):
        raise NotSupported(
            f"image {header.name!r} has the option rbd_plugins = {guard}, allowed: none; "
            f"`rbd config image remove {header.name} rbd_plugins` removes it"
        )
    if record is None or record.holder is None:
        if guard == LIFTED:
            return None
        raise CorruptState(
            f"image {header.name!r} is guarded ({guard}), and its record names no host with dirty data: "
            f"`rados rmomapkey {header.object_name} {_GUARD_OMAP}` in its pool lifts the guard"
        )
    return guard if guard != LIFTED else guard_for(record.holder_name or record.holder)


class RbdRecords:
    """The record of one open image, under the lock that *client* holds."""

    def __init__(self, client: Client, header: Header, identity: Identity) -> None:
        self._client = client
        self._header = header
        self._identity = identity
        self._turn = trio.Lock()
        self._writing = threading.Lock()  # keeps what was left behind before what comes after it

    async def read(self) -> ImageRecord | None:
        """See :meth:`fusecache.api.BackendImage.record`."""
        header = await fetch_header_of(self._client, self._header.id, self._header.name)
        return decoded_record(header, self._identity)

    async def write(self, record: ImageRecord, *, guard: bool) -> None:
        """See :meth:`fusecache.api.BackendImage.set_record`. What a cancellation leaves behind never comes after a
        later write."""
        keys = {_RECORD_OMAP: records.encode(record, self._identity).encode()}
        if guard and record.holder is not None:
            keys[_GUARD_OMAP] = guard_for(record.holder_name or record.holder).encode()
        wanted = True

        def still_wanted() -> bool:
            return wanted

        async with self._turn:
            try:
                await self._client.call(self._write, keys, still_wanted)
            except trio.Cancelled:
                wanted = False
                raise

    def _write(self, keys: dict[str, bytes], wanted: Callable[[], bool]) -> None:
        ioctx, name = self._client.ioctx, self._header.object_name
        try:
            for _ in range(_ATTEMPTS):
                lock = _lock_of(ioctx, name)
                with self._writing:
                    if not wanted() or _written_under(ioctx, name, lock, keys):
                        return
        except rados.Error as error:
            if error.errno != BLOCKLISTED:
                raise
            raise VolumeReadOnly(f"image {self._header.name!r}: the cluster has blocklisted this client") from error
        raise VolumeReadOnly(f"image {self._header.name!r}: its exclusive lock is not ours any more")


async def change_guard(client: Client, header: Header, found: str, wanted: str) -> bool:
    """Replace the guard *found* by *wanted*, where the record is still *header*'s; return whether it was so.

    A crash leaves the one or the other. What was given up, or cancelled, happens when the cluster answers, and before
    any later call's.

    Raises:
        FusecacheError, OSError: see :meth:`Client.operate`; or the cluster does not let us.
    """

    def submit(finish: Callable[..., None]) -> None:
        ioctx = client.ioctx
        operation = ioctx.create_write_op()
        release = client.keep()

        def complete(completion: Any) -> None:
            ioctx.release_write_op(operation)
            finish(completion.get_return_value())
            release()

        try:
            operation.omap_cmp(_RECORD_OMAP, (header.record or b"").decode("ascii"), _EQUAL)
            operation.omap_cmp(_GUARD_OMAP, found, _EQUAL)
            ioctx.set_omap(operation, (_GUARD_OMAP,), (wanted.encode(),))
            ioctx.operate_aio_write_op(operation, header_object(header.id), complete)
        except BaseException:
            release()
            raise

    (result,) = await client.operate(submit)
    if result < 0 and result != -errno.ECANCELED:
        raise error_of(-result, f"the guard of image {header.name!r} cannot be changed")
    return bool(result >= 0)


def _written_under(ioctx: Any, name: str, lock: bytes, keys: dict[str, bytes]) -> bool:
    """Set *keys*, and remove the guard where it is not among them, if *lock* is held by us; return whether it is."""
    with rados.WriteOpCtx() as operation:
        operation.execute("lock", "assert_locked", lock)
        ioctx.set_omap(operation, tuple(keys), tuple(keys.values()))
        if _GUARD_OMAP not in keys:
            ioctx.remove_omap_keys(operation, (_GUARD_OMAP,))
        try:
            ioctx.operate_write_op(operation, name)
        except rados.Error as error:
            if error.errno != errno.EBUSY:
                raise
            return False
    return True


def _lock_of(ioctx: Any, name: str) -> bytes:
    """Return the question of the class ``lock`` whether we are the owner of an image's lock as it is now.

    The owner's cookie changes when librbd has had to watch the image anew. With another owner's, the answer is no.
    """
    _, answer = ioctx.execute(name, "lock", "get_info", _structure(_LOCK))
    try:
        cookie, tag = _cookie_and_tag(answer)
    except struct.error as error:
        raise CorruptState(f"the lock of {name} does not parse: found {answer.hex()}") from error
    return _structure(_LOCK + _EXCLUSIVE + cookie + tag)


def _structure(content: bytes) -> bytes:
    return struct.pack("<BBI", 1, 1, len(content)) + content


def _cookie_and_tag(answer: bytes) -> tuple[bytes, bytes]:
    """Return the first owner's cookie and the lock's tag, as encoded strings, out of an answer of ``get_info``.

    That is a structure with a map of owners, the kind of lock and the tag; an owner is a structure with its name (9
    bytes) and cookie, and one with its address.
    """
    (owners,) = struct.unpack_from("<I", answer, 6)
    at, cookie = 10, encode_string("")
    for number in range(owners):
        found = _string_at(answer, at + 6 + 9)
        cookie = cookie if number else found
        at = _after(answer, _after(answer, at))
    return cookie, _string_at(answer, at + 1)


def _after(answer: bytes, at: int) -> int:
    """Return where the structure at *at* ends."""
    (length,) = struct.unpack_from("<I", answer, at + 2)
    return at + 6 + int(length)


def _string_at(answer: bytes, at: int) -> bytes:
    (length,) = struct.unpack_from("<I", answer, at)
    return answer[at : at + 4 + length]
