"""How headers and the directory of images are fetched, without opening an image.

Owns the requests: few round trips, no threads, many at once where there is much to fetch. It must not know the layout
of what comes back (:mod:`fusecache.backends.rbd.header`).
"""

import errno
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import trio

from fusecache.api.errors import CorruptState, FusecacheError, ImageGone, ImageNotFound
from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.errors import error_of
from fusecache.backends.rbd.header import (
    HEADER_KEYS,
    SNAPSHOT,
    Header,
    decode_header,
    decode_listing,
    decode_string,
    encode_listing,
    header_object,
    id_object,
)

log = logging.getLogger(__name__)

_DIRECTORY: Final = "rbd_directory"
_LONGEST_ID: Final = 4096

_NAMES_AT_ONCE: Final = 256
_LONGEST_ENTRY: Final = 2048 + 512
"""An image's name and id, encoded: objects have names of at most 2048 bytes."""

_HEADERS_AT_ONCE: Final = 128
_SNAPSHOTS_AT_ONCE: Final = 512


async def fetch_directory(client: Client) -> dict[str, str]:
    """Return the ids of all images by name; what is not UTF-8 has surrogates. One round trip for 256 images."""
    found: dict[str, str] = {}
    after = ""
    while True:
        question = encode_listing(after, _NAMES_AT_ONCE)
        raw = await _execute(client, "dir_list", question, _NAMES_AT_ONCE * _LONGEST_ENTRY)
        entries = [] if raw is None else decode_listing(raw)
        found.update(entries)
        if len(entries) < _NAMES_AT_ONCE:
            return found
        after = entries[-1][0]


async def check_listing(client: Client) -> None:
    """Ask for one image's name, in one round trip: raises where names cannot be listed.

    Raises:
        PermissionError: the Ceph user may not.
        FusecacheError, OSError: the cluster does not answer in time, or with an error.
    """
    await _execute(client, "dir_list", encode_listing("", 1), _LONGEST_ENTRY)


async def fetch_id(client: Client, name: str) -> str:
    """Return the id of the image *name*, in one round trip.

    Raises:
        ImageNotFound: there is none.
    """

    def submit(finish: Callable[..., None]) -> None:
        client.ioctx.aio_read(
            id_object(name), _LONGEST_ID, 0, lambda completion, data: finish(completion.get_return_value(), data)
        )

    result, raw = await client.operate(submit)
    _expect(result, id_object(name), missing=f"no image {name!r}")
    return decode_string(id_object(name), raw)


async def fetch_header(client: Client, name: str) -> Header:
    """Return the header of the image *name*, in two round trips.

    Raises:
        ImageNotFound: there is none.
        CorruptState: there is one, which does not parse.
    """
    return await fetch_header_of(client, await fetch_id(client, name), name)


async def fetch_header_of(client: Client, image_id: str, name: str) -> Header:
    """Return the header of the image of that id, which is called *name*, in one round trip.

    Raises:
        ImageNotFound, CorruptState: as in :func:`fetch_header`.
    """
    snapshots: dict[str, bytes] = {}
    while True:
        values, more = await _read_omap(
            client,
            header_object(image_id),
            lambda ioctx, operation: ioctx.get_omap_vals_by_keys(operation, HEADER_KEYS)[0],
            lambda ioctx, operation: ioctx.get_omap_vals(
                operation, max(snapshots, default=""), SNAPSHOT, _SNAPSHOTS_AT_ONCE
            )[0],
            missing=f"no image {name!r} (it has a name and no header: it was removed just now, or creating or removing "
            f"it was broken off, and `rbd rm` clears away the rest)",
        )
        snapshots.update(more)
        if len(more) < _SNAPSHOTS_AT_ONCE:
            return decode_header(image_id, name, values, snapshots.values())


async def fetch_headers(client: Client, directory: Mapping[str, str]) -> list[Header]:
    """Return the headers of all images of *directory*, many at once.

    What has no header (any more) is left out, and so is one that does not parse: it must not hide the others.
    """
    found: list[Header] = []
    queue = iter(directory.items())
    failed: list[FusecacheError | OSError] = []

    async def work() -> None:
        for name, image_id in queue:
            if failed:
                return
            try:
                found.append(await fetch_header_of(client, image_id, name))
            except ImageNotFound:
                continue
            except CorruptState as error:
                log.warning("image %r is not shown: %s", name, error)
            except (FusecacheError, OSError) as error:
                # Raised after the nursery, which would wrap it.
                failed.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(min(_HEADERS_AT_ONCE, len(directory))):
            nursery.start_soon(work)
    if failed:
        raise failed[0]
    return found


async def fetch_name(client: Client, image_id: str) -> str:
    """Return the present name of the image of that id, in one round trip.

    Raises:
        ImageGone: it has none, as it was removed.
    """
    key = f"id_{image_id}"

    (values,) = await _read_omap(
        client,
        _DIRECTORY,
        lambda ioctx, operation: ioctx.get_omap_vals_by_keys(operation, (key,))[0],
        missing="no directory of images",
    )
    if key not in values:
        raise ImageGone(f"the image of id {image_id} was removed while it was open")
    return decode_string(f"{_DIRECTORY} {key}", values[key])


async def _read_omap(
    client: Client, name: str, *questions: Callable[[Any, Any], Iterable[tuple[str, bytes]]], missing: str
) -> list[dict[str, bytes]]:
    """Return the answers to *questions* about the omap of the object *name*, asked in one operation."""

    def submit(finish: Callable[..., None]) -> None:
        ioctx = client.ioctx
        operation = ioctx.create_read_op()
        answers = [question(ioctx, operation) for question in questions]

        def complete(completion: Any) -> None:
            ioctx.release_read_op(operation)
            finish(completion.get_return_value(), answers)

        ioctx.operate_aio_read_op(operation, name, complete)

    result, answers = await client.operate(submit)
    # The binding's iterators are fit to be read only where the operation succeeded.
    _expect(result, name, missing)
    # It gives None for an empty value.
    return [{key: value or b"" for key, value in answer} for answer in answers]


async def _execute(client: Client, method: str, question: bytes, most: int) -> bytes | None:
    """Return the answer of a method of the class ``rbd`` on the directory, of at most *most* bytes; None where there
    is no directory, as no image was ever made."""

    def submit(finish: Callable[..., None]) -> None:
        client.ioctx.aio_execute(
            _DIRECTORY,
            "rbd",
            method,
            question,
            most,
            lambda completion, data: finish(completion.get_return_value(), data),
        )

    result, answer = await client.operate(submit)
    if result == -errno.ENOENT:
        return None
    _expect(result, _DIRECTORY)
    # The binding hands out memory behind the buffer where the answer is longer.
    if result > most:
        raise CorruptState(f"{_DIRECTORY} answered {method} with {result} bytes, allowed: {most}")
    return bytes(answer)


def _expect(result: int, name: str, missing: str = "") -> None:
    if result == -errno.ENOENT and missing:
        raise ImageNotFound(missing)
    if result < 0:
        raise error_of(-result, f"cannot read the object {name}")
