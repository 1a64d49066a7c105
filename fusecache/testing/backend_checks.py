"""The promises of :mod:`fusecache.api.backend`.

Owns one check for each; who may open an image is checked in :mod:`fusecache.testing.claim_checks`, and images as
volumes in :mod:`fusecache.testing.volume_checks`. It must not know what kind of backend it looks at. Every check
receives a place of its own, without images.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from fusecache.api.backend import ImageInfo
from fusecache.api.errors import (
    BadCommand,
    FusecacheError,
    ImageBusy,
    ImageExists,
    ImageNotFound,
    NotSupported,
    VolumeReadOnly,
)
from fusecache.testing.claims import FreeClaim
from fusecache.testing.harness import (
    Broken,
    cancelled_at_each_await,
    content,
    expect,
    expect_bytes,
    fetch,
    pattern,
    put,
)
from fusecache.testing.place import SIZE, Place, expect_raises, load, names, open_and_close, store

IMPOSSIBLE_SNAPSHOTS: Final = ("", "a@b", "a/b", "n" * 300, "zero\0byte")
IMPOSSIBLE_NAMES: Final = ("", ".", "..", "image/", "missing/image", "../image", "n" * 300, "zero\0byte")


async def a_created_image_is_listed_and_reads_as_zeroes(place: Place) -> None:
    """At once, under its name, at its size."""
    backend = place.backend
    expect(not await backend.list(), "a place without images lists some")
    for number, name in enumerate(("plain", "with blank", "ünïcode", ".hidden", "a" * 200)):
        created = await backend.create(name, SIZE + number)
        _expect_info(created, name, SIZE + number)
        _expect_info(await backend.lookup(name), name, SIZE + number)
        expect_bytes(await load(backend, name), bytes(SIZE + number))
    listed = {info.name: info for info in await backend.list()}
    for name, info in listed.items():
        _expect_info(info, name, (await backend.lookup(name)).size)
    expect(len(listed) == 5, f"created were 5 images, listed are {sorted(listed)}")
    expect(len({info.key for info in listed.values()}) == 5, f"images share a key: {listed}")


def _expect_info(info: ImageInfo, name: str, size: int) -> None:
    expect(isinstance(info, ImageInfo), f"found {info!r} for an ImageInfo")
    expect(info.name == name and info.size == size, f"found {info}, expected {name!r} of {size} bytes")
    expect(isinstance(info.key, str) and bool(info.key), f"found no key: {info}")
    expect(info.allocated is None or info.allocated >= 0, f"found allocated below 0: {info}")
    expect(info.mtime_ns >= 0, f"found a time below 0: {info}")


async def create_never_replaces_an_image(place: Place) -> None:
    """ImageExists, and the image keeps its bytes; of many at once for one name exactly one succeeds."""
    backend = place.backend
    data = await store(backend, "image", 1)
    await expect_raises(ImageExists, backend.create("image", 4096), "create of a taken name")
    expect_bytes(await load(backend, "image"), data)
    outcomes: list[bool] = []

    async def create() -> None:
        try:
            await backend.create("contested", SIZE)
        except ImageExists:
            outcomes.append(False)
        else:
            outcomes.append(True)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(create)
    expect(sum(outcomes) == 1, f"{sum(outcomes)} of 8 creations of one name succeeded at once")


async def listing_and_lookup_write_nothing(place: Place) -> None:
    """What is stored, and what is told of it, stays the same."""
    backend = place.backend
    await store(backend, "image", 2)
    await backend.create("never-opened", SIZE)
    stored = place.fingerprint(backend) if place.fingerprint else None
    before = sorted(await backend.list(), key=lambda info: info.name)
    for info in before:
        expect(await backend.lookup(info.name) == info, f"lookup and list disagree on {info.name!r}")
    after = sorted(await backend.list(), key=lambda info: info.name)
    expect(after == before, f"a second list differs: {before}, then {after}")
    if place.fingerprint:
        expect(place.fingerprint(backend) == stored, "what is stored has changed")


async def what_is_no_image_is_not_found(place: Place) -> None:
    """ImageNotFound from lookup, open, rename and remove; an error of some kind for a name that no image can have."""
    backend = place.backend
    await backend.create("image", SIZE)
    for name in ("missing", *IMPOSSIBLE_NAMES):
        kinds = (ImageNotFound,) if name == "missing" else (FusecacheError, OSError)
        await expect_raises(kinds, backend.lookup(name), f"lookup of {name!r}")
        await expect_raises(kinds, open_and_close(backend, name), f"open of {name!r}")
        await expect_raises(kinds, backend.remove(name), f"remove of {name!r}")
        await expect_raises(kinds, backend.rename(name, "new"), f"rename of {name!r}")
    expect(await names(backend) == {"image"}, f"found {await names(backend)}, expected one image")


async def an_open_image_has_one_owner(place: Place) -> None:
    """A second open, also for reading, raises ImageBusy until the first is closed; the first is not disturbed."""
    backend = place.backend
    data = await store(backend, "image", 3)
    async with backend.open("image", FreeClaim()) as image:
        for read_only in (False, True):
            await expect_raises(ImageBusy, open_and_close(backend, "image", read_only=read_only), "a second open")
        expect_bytes(await content(image), data)
        await put(image, 0, pattern(SIZE, 4))
        expect_bytes(await content(image), pattern(SIZE, 4))
    async with backend.open("image", FreeClaim(), read_only=True):
        await expect_raises(ImageBusy, open_and_close(backend, "image"), "an open beside a reader")
    expect_bytes(await load(backend, "image"), pattern(SIZE, 4))


async def of_many_opens_at_once_one_succeeds(place: Place) -> None:
    """The others raise ImageBusy."""
    backend = place.backend
    await backend.create("image", SIZE)
    owners = 0
    busy = 0
    over = trio.Event()

    async def open_it() -> None:
        nonlocal owners, busy
        try:
            async with backend.open("image", FreeClaim()):
                owners += 1
                await over.wait()
        except ImageBusy:
            busy += 1
        if busy == 7:
            over.set()

    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(open_it)
    expect((owners, busy) == (1, 7), f"of 8 opens at once {owners} succeeded and {busy} were refused")


async def a_closed_image_refuses_requests(place: Place) -> None:
    """Reads and writes raise; nothing reaches what another owner has open now."""
    backend = place.backend
    data = await store(backend, "image", 5)
    async with backend.open("image", FreeClaim()) as image:
        pass
    async with backend.open("image", FreeClaim()) as other:
        for call in (lambda: image.read(0, 512), lambda: image.write(0, memoryview(bytes(512))), image.flush):
            try:
                await call()
            except Exception:
                continue
            raise Broken("a request to a closed image returned")
        expect_bytes(await content(other), data)


async def an_image_opened_for_reading_cannot_be_changed(place: Place) -> None:
    """``read_only`` says so, changes raise, and the bytes stay."""
    backend = place.backend
    data = await store(backend, "image", 6)
    async with backend.open("image", FreeClaim(), read_only=True) as image:
        expect(image.read_only is True, f"read_only is {image.read_only!r}")
        changes: Sequence[Callable[[], Awaitable[None]]] = (
            lambda: image.write(0, memoryview(bytes(512))),
            lambda: image.write_zeroes(0, 512),
            lambda: image.discard(0, 512),
            lambda: image.resize(512),
        )
        for change in changes:
            try:
                await change()
            except Exception:
                continue
            raise Broken("a change to an image opened for reading returned")
        expect_bytes(await content(image), data)
    expect_bytes(await load(backend, "image"), data)


async def acknowledged_data_survives_closing(place: Place) -> None:
    """Flushed or not; and the size a resize has set."""
    backend = place.backend
    data = await store(backend, "image", 7)
    expect_bytes(await load(backend, "image"), data)
    async with backend.open("image", FreeClaim()) as image:
        await image.resize(SIZE + 100)
        await put(image, SIZE, pattern(100, 8))
    expect((await backend.lookup("image")).size == SIZE + 100, "lookup does not tell the size a resize has set")
    expect_bytes(await load(backend, "image"), data + pattern(100, 8))


async def a_rename_keeps_key_identity_and_bytes(place: Place) -> None:
    """The old name is gone; the same holds for a name used before."""
    backend = place.backend
    data = await store(backend, "one", 9)
    identity = await open_and_close(backend, "one")
    key = (await backend.lookup("one")).key
    await backend.rename("one", "two")
    await expect_raises(ImageNotFound, backend.lookup("one"), "lookup of the old name")
    expect(await names(backend) == {"two"}, f"listed are {await names(backend)}")
    expect((await backend.lookup("two")).key == key, "the key has changed")
    expect(await open_and_close(backend, "two") == identity, "the identity has changed")
    expect_bytes(await load(backend, "two"), data)
    await backend.create("one", SIZE)
    expect(await open_and_close(backend, "one") != identity, "a new image of the old name has the same identity")
    expect((await backend.lookup("one")).key != key, "a new image of the old name has the same key")


async def rename_never_replaces_an_image(place: Place) -> None:
    """ImageExists, and both images stay as they were."""
    backend = place.backend
    one, two = await store(backend, "one", 10), await store(backend, "two", 11)
    await expect_raises(ImageExists, backend.rename("one", "two"), "rename to a taken name")
    expect_bytes(await load(backend, "one"), one)
    expect_bytes(await load(backend, "two"), two)


async def an_open_image_tells_its_present_name_and_size(place: Place) -> None:
    """``info`` agrees with ``lookup``, also after a rename and a resize; the image goes on working."""
    backend = place.backend
    data = await store(backend, "one", 12)
    async with backend.open("one", FreeClaim()) as image:
        _expect_info(await image.info(), "one", SIZE)
        expect((await image.info()).key == (await backend.lookup("one")).key, "info and lookup disagree on the key")
        await image.resize(SIZE - 100)
        _expect_info(await image.info(), "one", SIZE - 100)
        await backend.rename("one", "two")
        _expect_info(await image.info(), "two", SIZE - 100)
        await expect_raises(ImageBusy, open_and_close(backend, "two"), "an open under the new name")
        expect_bytes(await fetch(image, 0, 4096), data[:4096])
    _expect_info(await backend.lookup("two"), "two", SIZE - 100)


async def remove_takes_the_image_and_nothing_else(place: Place) -> None:
    """It is gone from lookup and list; an open one raises ImageBusy and stays; a new one of that name is empty."""
    backend = place.backend
    data, other = await store(backend, "image", 13), await store(backend, "other", 14)
    async with backend.open("image", FreeClaim()) as image:
        identity = image.identity
        await expect_raises(ImageBusy, backend.remove("image"), "remove of an open image")
        expect_bytes(await content(image), data)
    await backend.remove("image")
    await expect_raises(ImageNotFound, backend.lookup("image"), "lookup of a removed image")
    expect(await names(backend) == {"other"}, f"listed are {await names(backend)}")
    await backend.create("image", SIZE)
    expect_bytes(await load(backend, "image"), bytes(SIZE))
    expect(await open_and_close(backend, "image") != identity.text, "a new image has a removed one's identity")
    expect_bytes(await load(backend, "other"), other)


async def identity_survives_reopening_and_is_nobody_elses(place: Place) -> None:
    """It is canonical text: printable, at most 512 characters, beginning with a type and a colon."""
    backend = place.backend
    texts = {}
    for name in ("one", "two"):
        await backend.create(name, SIZE)
        texts[name] = await open_and_close(backend, name)
        text = texts[name]
        expect(text.isprintable() and len(text) <= 512 and ":" in text[1:], f"found the identity {text!r}")
        expect(await open_and_close(backend, name) == text, "the identity differs at the next open")
    expect(texts["one"] != texts["two"], f"two images share the identity {texts['one']!r}")


async def a_copy_is_another_image(place: Place) -> None:
    """Made behind the backend's back, attributes and all, it has the bytes, but a key and an identity of its own."""
    backend = place.backend
    if place.copy is None:
        return
    data = await store(backend, "image", 15)
    identity = await open_and_close(backend, "image")
    place.copy(backend, "image", "copy")
    expect_bytes(await load(backend, "copy"), data)
    expect(await open_and_close(backend, "copy") != identity, "the copy has the original's identity")
    expect(await open_and_close(backend, "image") == identity, "the original's identity has changed")
    keys = [(await backend.lookup(name)).key for name in ("image", "copy")]
    expect(keys[0] != keys[1], "the copy has the original's key")


async def a_snapshot_keeps_what_was_acknowledged(place: Place) -> None:
    """It is found and read at once, also beside the open image, and never changes; its name is given once. A backend
    without snapshots raises NotSupported."""
    backend = place.backend
    data = await store(backend, "image", 18)
    async with backend.open("image", FreeClaim()) as image:
        try:
            await image.check_snapshot("one")
        except NotSupported:
            await expect_raises(NotSupported, image.make_snapshot("one"), "make_snapshot without snapshots")
            return
        expect(not await backend.snapshots("image"), "check_snapshot made one")
        await image.make_snapshot("one")
        await put(image, 0, pattern(SIZE, 19))
        (info,) = await backend.snapshots("image")
        expect(await backend.lookup(info.name) == info, f"lookup and snapshots disagree on {info.name!r}")
        expect(info.snapshot and info.read_only and info.size == SIZE, f"found {info} for a snapshot")
        for call in (image.check_snapshot, image.make_snapshot):
            await expect_raises(ImageExists, call("one"), "a snapshot of a taken name")
            for name in IMPOSSIBLE_SNAPSHOTS:
                await expect_raises(BadCommand, call(name), f"a snapshot named {name!r}")
        expect_bytes(await load(backend, info.name), data)
        expect_bytes(await content(image), pattern(SIZE, 19))
    async with backend.open("image", FreeClaim(), read_only=True) as image:
        await expect_raises(VolumeReadOnly, image.make_snapshot("two"), "make_snapshot of a reader")
    expect(await names(backend) == {"image"}, f"listed are {await names(backend)}")
    expect_bytes(await load(backend, info.name), data)


async def a_cancelled_change_of_names_happened_or_not(place: Place) -> None:
    """Cancelled at any await, ``create``, ``rename`` and ``remove`` leave an image wholly there or not at all."""
    backend = place.backend
    data = pattern(SIZE, 16)

    async def look_at_created(where: str) -> None:
        if "created" in await names(backend):
            expect_bytes(await load(backend, "created"), bytes(SIZE))
            await backend.remove("created")
        expect(await names(backend) == set(), f"create {where}: listed are {await names(backend)}")

    async def look_at_renamed(where: str) -> None:
        listed = await names(backend)
        expect(listed in ({"old"}, {"new"}), f"rename {where}: listed are {listed}")
        (name,) = listed
        expect_bytes(await load(backend, name), data)
        if name == "new":
            await backend.rename("new", "old")

    async def look_at_removed(where: str) -> None:
        listed = await names(backend)
        expect(listed in ({"old"}, set()), f"remove {where}: listed are {listed}")
        if listed:
            expect_bytes(await load(backend, "old"), data)
        await store(backend, "old", 16)

    await cancelled_at_each_await(lambda: backend.create("created", SIZE), look_at_created)
    await store(backend, "old", 16)
    await cancelled_at_each_await(lambda: backend.rename("old", "new"), look_at_renamed)
    await cancelled_at_each_await(lambda: backend.remove("old"), look_at_removed)


async def a_cancelled_open_holds_nothing(place: Place) -> None:
    """Cancelled at any await, also while open, the image can be opened again at once."""
    backend = place.backend
    data = await store(backend, "image", 17)

    async def open_and_read() -> None:
        async with backend.open("image", FreeClaim()) as image:
            await content(image)

    async def look(where: str) -> None:
        try:
            expect_bytes(await load(backend, "image"), data)
        except ImageBusy as error:
            raise Broken(f"{where}: still locked: {error}") from error

    await cancelled_at_each_await(open_and_read, look)


BACKEND_CHECKS: Final[Sequence[Callable[[Place], Awaitable[None]]]] = (
    a_created_image_is_listed_and_reads_as_zeroes,
    create_never_replaces_an_image,
    listing_and_lookup_write_nothing,
    what_is_no_image_is_not_found,
    an_open_image_has_one_owner,
    of_many_opens_at_once_one_succeeds,
    a_closed_image_refuses_requests,
    an_image_opened_for_reading_cannot_be_changed,
    acknowledged_data_survives_closing,
    a_rename_keeps_key_identity_and_bytes,
    rename_never_replaces_an_image,
    an_open_image_tells_its_present_name_and_size,
    remove_takes_the_image_and_nothing_else,
    identity_survives_reopening_and_is_nobody_elses,
    a_copy_is_another_image,
    a_snapshot_keeps_what_was_acknowledged,
    a_cancelled_change_of_names_happened_or_not,
    a_cancelled_open_holds_nothing,
)
