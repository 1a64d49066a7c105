"""Opening an image under its exclusive lock.

Owns who may have the lock, when a dead owner's is taken away, and when the guard is lifted and put back. It must not
know what the image is used for.

**Order.** ::

    step                                                  a crash after it leaves
    1   the claim: this host's lock, our client noted     a free host lock, and proof that our client is gone
    2   the header, read anew                             the same
    3   the guard, if it is of our own host: lifted       the image without its guard; the record still names the
                                                          holder, so fusecache elsewhere refuses it; other programs
                                                          may open it until our host has opened it again
    4   the image opened, no lock taken                   the same, and a watcher that times out
    5   the guard put back (also if 4 failed)             as before 3, and that watcher
    6   owners that are gone: blocklisted, lock broken    no owner; what they sent late is refused by the cluster
    7   the exclusive lock taken                          an owner that the next process of this host knows to be gone;
                                                          other hosts wait until its watch times out
    8   the record, read anew, now nobody else writes it  the same

Lifting writes an empty guard, and not none: so the next open knows that there is one to put back. It is put back only
where the record is still the one that was read: who took the image over meanwhile has a guard of its own.

**Who is gone.** An owner that the claim says is gone, as it was a process of this host; or one that no longer watches
the header, which every living owner does, and which ends some 30 s after an owner has died. Where such an owner lives
after all, cut off from the cluster, breaking its lock blocklists it first: nothing that it sends arrives any more.
An owner that lives keeps its lock, also one that would hand it over, like a virtual machine's: it could not write
again as long as we have it.

An open that was given up may still take the lock when the cluster answers, and then gives it up at once. Until then
the claim is kept: our client stays on record, so if the process dies in between, the next one of this host need not
wait. The same holds where closing the image takes longer than anybody waits. The next open of this very process waits
for what is kept, in step 1 and for :attr:`Client.timeout` at the most: nobody is refused for a lock of our own.

Between finding no owner and taking the lock, a program may take it that hands it over on demand, and it is then asked
to. That is a matter of a millisecond, and librbd offers no lock without it.
"""

import errno
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, Final

import rbd
import trio

from fusecache.api import Claim, FusecacheError, Identity
from fusecache.api.errors import ImageBusy, NotSupported
from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.errors import CEPH_ERRORS
from fusecache.backends.rbd.handle import OpenHandle
from fusecache.backends.rbd.header import Header, header_object
from fusecache.backends.rbd.lookup import fetch_header_of
from fusecache.backends.rbd.opening import close_handle, open_handle
from fusecache.backends.rbd.records import LIFTED, change_guard, decoded_record, lifted_guard
from fusecache.backends.records import check_holder

log = logging.getLogger(__name__)

_ATTEMPTS: Final = 10

_PAUSE: Final = 0.05
"""The longest time between two attempts to get past a guard that others change, in seconds."""

_PATIENCE: Final = 3.0
"""How long the guard's way back is waited for, in seconds; it comes back all the same, as soon as the cluster does."""

_REFUSED_FOR: Final = 365 * 86400.0
"""How long the cluster refuses an owner whose lock was broken, in seconds: longer than any machine is suspended."""

_DEMANDED: Final = {
    "rbd_cache": ("false", "acknowledged data would be in this process's memory only"),
    "rbd_persistent_cache_mode": ("disabled", "acknowledged data would be on this host only"),
    "rbd_disable_zero_copy_writes": (
        "true",
        "data would be written from memory that is used for something else by then",
    ),
    "rbd_blocklist_on_break_lock": ("true", "an owner that lost its lock could still write"),
    "rbd_blocklist_expire_seconds": ("0", "librbd would break no dead owner's lock"),
}
"""Options of librbd that an image or its pool may set against ours, the value each must have, and why."""


async def open_owned(client: Client, header: Header, identity: Identity, claim: Claim) -> OpenHandle:
    """Open the image that *header* describes, and take its exclusive lock, so that nobody else can.

    Bounded by a few times :attr:`Client.timeout`. A failure or a cancellation leaves nothing open or locked, as soon
    as the cluster answers.

    Returns:
        The handle that holds the lock until it is closed.

    Raises:
        ImageBusy: an owner that lives has the lock; another process of this host has the image open; or another host
            holds dirty data of it. The message names it.
        ImageNotFound: the image was removed.
        CorruptState: its record or guard cannot be.
        Fenced: it is a copy that lacks data.
        NotSupported: an option of librbd is set that may lose data.
        FusecacheError: EIO, the cluster did not answer in time, has not closed the image since this process last had
            it open, or does not let us blocklist a dead owner.
    """
    # What is refused anyway leaves no trace.
    check_holder(decoded_record(header, identity), claim, header.name)
    gone = await claim(identity, client.address, client.timeout)

    async def checked() -> Header:
        found = await fetch_header_of(client, header.id, header.name)
        check_holder(decoded_record(found, identity), claim, found.name)
        return found

    handle = await open_past_guard(client, identity, checked, lambda: open_handle(client, header.id, header.name))
    # Whatever lock librbd takes from now on is ours until it has closed the image.
    handle.when_closed(claim.keep())
    try:
        await client.acquire(handle.use, _take_lock, client, gone, undo=lambda taken: None)
        # Whoever had the lock until now may have become dirty.
        await checked()
    except BaseException:
        await close_handle(client, handle)
        raise
    return handle


async def open_past_guard(
    client: Client,
    identity: Identity,
    checked: Callable[[], Awaitable[Header]],
    open_it: Callable[[], Awaitable[OpenHandle]],
) -> OpenHandle:
    """Open an image, or a snapshot of it, whose guard our host may have to lift for that; takes no lock.

    Several that do so at once, in any processes of the host, may put the guard back too early for each other; then it
    is tried again.

    Args:
        checked: fetches the header, and raises where its record does not let us open the image.
        open_it: opens what is wanted.

    Raises:
        ImageBusy: the guard was changed by others each time.
        CorruptState, Fenced, NotSupported: as :func:`guard_lifted`.
    """
    header = await checked()
    for left in reversed(range(_ATTEMPTS)):
        handle = None
        try:
            async with guard_lifted(client, header, identity):
                handle = await open_it()
        except BaseException as error:
            if handle is not None:
                await close_handle(client, handle)
            if handle is not None or getattr(error, "errno", None) not in (errno.EBUSY, errno.ENOSYS):
                raise
            # Where the guard is newer than what was read, the record is as new, and says whose it is.
            before, header = header, await checked()
            if not left or before.guard is header.guard is None:
                raise
        else:
            return handle
        await trio.sleep(random.uniform(0, _PAUSE))
    raise AssertionError("the last attempt returns or raises")


@asynccontextmanager
async def guard_lifted(client: Client, header: Header, identity: Identity) -> AsyncIterator[None]:
    """Lift an image's guard for the length of a block, which should be short; where there is none nothing happens.

    For the host that holds the dirty data, or takes the image over. In the end the guard is put back, also one that a
    crash left lifted; where the cluster is away, as soon as it is back, if this process still lives then.

    Raises:
        ImageBusy: the record or the guard was changed at this moment.
        CorruptState, Fenced, NotSupported: see :func:`fusecache.backends.rbd.records.lifted_guard`.
    """
    guard = lifted_guard(header, decoded_record(header, identity))
    if guard is None:
        yield
        return
    ours = True
    try:
        ours = header.guard == LIFTED or await change_guard(client, header, guard, LIFTED)
        if not ours:
            raise ImageBusy(f"image {header.name!r} is being opened or changed by somebody else at this moment")
        yield
    finally:
        if ours:
            await _put_back(client, header, guard)


async def _put_back(client: Client, header: Header, guard: str) -> None:
    with trio.move_on_after(_PATIENCE, shield=True) as patience:
        if not await change_guard(client, header, LIFTED, guard):
            log.info("image %r: the guard was changed by somebody else meanwhile", header.name)
    if patience.cancelled_caught:
        log.error("image %r is without its guard until the cluster answers", header.name)


def _take_lock(image: Any, client: Client, gone: Collection[str]) -> None:
    """Take the exclusive lock of an open image, from owners that are gone if need be. Blocking."""
    path = _path(client.ioctx, image.get_name())
    _check_options(image, path)
    for _ in range(_ATTEMPTS):
        owners = _owners(image)
        if not owners:
            try:
                image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
            except (rbd.ReadOnlyImage, rbd.ImageBusy):
                # Somebody was faster.
                continue
            return
        alive = {watcher["addr"] for watcher in image.watchers_list()}
        for owner in owners:
            _check_gone(owner, image, client, alive, gone)
            _break(image, owner, path, client)
    raise ImageBusy(f"the exclusive lock of image {path} goes from hand to hand")


def _check_gone(owner: str, image: Any, client: Client, alive: Collection[str], gone: Collection[str]) -> None:
    """See that *owner* is gone.

    Raises:
        ImageBusy: it lives, or may.
    """
    path = _path(client.ioctx, image.get_name())
    if owner == client.address:
        raise ImageBusy(f"image {path} is still being closed by this very process, client {owner}")
    if owner in alive and owner not in gone:
        raise ImageBusy(
            f"image {path} is locked by the client {owner}, which lives: end what uses the image there, or wait half "
            f"a minute if that has died just now; `{_watchers_command(client.ioctx, image)}` shows it until then"
        )


def _break(image: Any, owner: str, path: str, client: Client) -> None:
    """Have the cluster refuse *owner* from now on, and take its lock away; no effect where it has gone by itself.

    librbd would have it refused for an hour. An owner that was suspended for longer would then go on writing: it finds
    out about its lock only later. The first term counts, so ours comes first.
    """
    if owner not in _owners(image):
        # It was being closed: the lock goes before the watch. Its client may live on, with other images.
        return
    log.warning("%s: the lock of the client %s, which is gone, is broken", path, owner)
    try:
        client.blocklist(owner, _REFUSED_FOR)
        image.lock_break(rbd.RBD_LOCK_MODE_EXCLUSIVE, owner)
    except CEPH_ERRORS as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise FusecacheError(
                f"image {path}: the cluster does not let us blocklist the client {owner}, which is gone and has the "
                "exclusive lock; `ceph auth caps` gives the user the capability mon 'profile rbd'"
            ) from error
        if error.errno not in (errno.ENOENT, errno.EBUSY, errno.EINVAL):
            raise


def _owners(image: Any) -> list[str]:
    return [owner["owner"] for owner in image.lock_get_owners()]


def _check_options(image: Any, path: str) -> None:
    """See that no option of librbd puts data where it may be lost.

    Raises:
        NotSupported: one does; the message names it, who sets it, and the command that removes it.
    """
    for option in image.config_list():
        key, found = option["name"], option["value"]
        if key in _DEMANDED and found != _DEMANDED[key][0]:
            allowed, why = _DEMANDED[key]
            source, command = "Ceph's config", f"`ceph config rm client {key}` may remove it"
            if option["source"] == rbd.RBD_CONFIG_SOURCE_IMAGE:
                source, command = "its own metadata", f"`rbd config image remove {path} {key}` removes it"
            elif option["source"] == rbd.RBD_CONFIG_SOURCE_POOL:
                source = "its pool's metadata"
                command = f"`rbd config pool remove {path.partition('/')[0]} {key}` removes it"
            raise NotSupported(f"image {path}: {source} sets {key} = {found}, allowed: {allowed}, as {why}; {command}")


def _watchers_command(ioctx: Any, image: Any) -> str:
    """Return the command that shows who has an image open; `rbd` itself opens none that has a guard."""
    namespace = f" -N {ioctx.get_namespace()}" if ioctx.get_namespace() else ""
    return f"rados -p {ioctx.get_pool_name()}{namespace} listwatchers {header_object(image.id())}"


def _path(ioctx: Any, name: str) -> str:
    """Return an image's name as Ceph's tools take it."""
    return "/".join((ioctx.get_pool_name(), *filter(None, [ioctx.get_namespace()]), name))
