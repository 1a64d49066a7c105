"""The promises of :mod:`fusecache.api.backend` about who may open an image, and about its record.

Owns one check for each. It must not know what kind of backend it looks at. Every check receives a place of its own,
without images.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

from fusecache.api.backend import BackendImage, ImageRecord
from fusecache.api.errors import FusecacheError, ImageBusy, ImageNotFound, NotSupported, VolumeReadOnly
from fusecache.testing.claims import FreeClaim
from fusecache.testing.harness import Broken, cancelled_at_each_await, expect, expect_bytes
from fusecache.testing.place import SIZE, Place, expect_raises, load, open_and_close, store

OWN: Final = "a" * 32
OTHER: Final = "b" * 32
CLEAN: Final = ImageRecord(epoch=3)
DIRTY: Final = ImageRecord(epoch=7, holder=OWN, holder_name="höst", manifest='two\nlines "quoted" \\ ünïcode\n')


async def an_open_claims_the_image_once(place: Place) -> None:
    """With its identity, also for reading; a claim that refuses keeps the image closed, and nothing stays locked."""
    backend = place.backend
    data = await store(backend, "image", 1)
    for read_only in (False, True):
        claim = FreeClaim()
        async with backend.open("image", claim, read_only=read_only) as image:
            asked = [identity for identity, _ in claim.asked]
            expect(asked == [image.identity], f"claimed was {asked}, expected once {image.identity}")
        refused = FreeClaim(refusal=ImageBusy("another process has it"))
        await expect_raises(ImageBusy, open_and_close(backend, "image", refused), "an open whose claim refuses")
    expect_bytes(await load(backend, "image"), data)


async def a_record_stays_with_its_image(place: Place) -> None:
    """As it was set last: while open and closed, under a new name, and with no other image."""
    backend = place.backend
    await backend.create("image", SIZE)
    await backend.create("other", SIZE)
    claim = FreeClaim(OWN)
    expect(await backend.read_record("image") is None, "an image never opened has a record")
    async with backend.open("image", claim) as image:
        expect(await image.record() is None, "an image never dirty has a record")
        if not await _keeps_records(image):
            return
        for record in (DIRTY, replace(DIRTY, manifest="m" * 1000), CLEAN, DIRTY):
            await image.set_record(record, guard=record.holder is not None)
            expect(await image.record() == record, f"found {await image.record()}, set was {record}")
            found = await backend.read_record("image")
            expect(found == record, f"from outside found {found}, set was {record}")
    async with backend.open("image", claim) as image:
        expect(await image.record() == DIRTY, f"after a reopen found {await image.record()}, set was {DIRTY}")
        await image.set_record(CLEAN, guard=False)
    await backend.rename("image", "renamed")
    found = await backend.read_record("renamed")
    expect(found == CLEAN, f"after a rename found {found}, set was {CLEAN}")
    expect(await backend.read_record("other") is None, "another image has the record")
    await expect_raises(ImageNotFound, backend.read_record("image"), "read_record of a name that is gone")
    await expect_raises((FusecacheError, OSError), backend.read_record(".."), "read_record of an impossible name")


async def an_image_opened_for_reading_keeps_its_record(place: Place) -> None:
    """``set_record`` raises VolumeReadOnly there, and not after the image is closed either."""
    backend = place.backend
    await backend.create("image", SIZE)
    async with backend.open("image", FreeClaim(OWN)) as image:
        if not await _keeps_records(image):
            return
        await image.set_record(CLEAN, guard=False)
    await _expect_refused(image, "a closed image")
    async with backend.open("image", FreeClaim(OWN), read_only=True) as image:
        await expect_raises(VolumeReadOnly, image.set_record(DIRTY, guard=True), "set_record of a reader")
        expect(await image.record() == CLEAN, f"a reader found {await image.record()}, set was {CLEAN}")
    expect(await backend.read_record("image") == CLEAN, "the record has changed")


async def dirty_data_of_another_host_keeps_an_image_closed(place: Place) -> None:
    """ImageBusy names the host; its own host opens the image, as does whoever takes over; the record stays."""
    backend = place.backend
    data = await store(backend, "image", 2)
    async with backend.open("image", FreeClaim(OWN)) as image:
        if not await _keeps_records(image):
            return
        await image.set_record(DIRTY, guard=True)
    for read_only in (False, True):
        try:
            await open_and_close(backend, "image", FreeClaim(OTHER), read_only=read_only)
        except ImageBusy as error:
            expect(DIRTY.holder_name in str(error), f"the message does not name the host: {error}")
        else:
            raise Broken("an image that is dirty on another host was opened")
        expect(await backend.read_record("image") == DIRTY, "the record has changed")
    for claim in (FreeClaim(OWN), FreeClaim(OTHER, take_over=True)):
        expect_bytes(await load(backend, "image", claim), data)
        expect(await backend.read_record("image") == DIRTY, "an open has changed the record")
    async with backend.open("image", FreeClaim(OWN)) as image:
        await image.set_record(CLEAN, guard=False)
    expect_bytes(await load(backend, "image", FreeClaim(OTHER)), data)


async def a_cancelled_record_is_the_old_one_or_the_new_one(place: Place) -> None:
    """Cancelled at any await of ``set_record``."""
    backend = place.backend
    await backend.create("image", SIZE)
    async with backend.open("image", FreeClaim(OWN)) as image:
        if not await _keeps_records(image):
            return
        epoch = 1
        await image.set_record(ImageRecord(epoch), guard=False)

        async def look(where: str) -> None:
            nonlocal epoch
            found = await image.record()
            expect(found in (ImageRecord(epoch), ImageRecord(epoch + 1)), f"{where}: found {found}, from {epoch}")
            expect(await backend.read_record("image") == found, f"{where}: from outside there is another record")
            epoch = found.epoch if found is not None else epoch

        await cancelled_at_each_await(lambda: image.set_record(ImageRecord(epoch + 1), guard=False), look)


async def _keeps_records(image: BackendImage) -> bool:
    """Say whether the image can have a record; where not, see that it says so."""
    if image.durable_identity:
        return True
    await expect_raises(NotSupported, image.set_record(CLEAN, guard=False), "set_record without a durable identity")
    return False


async def _expect_refused(image: BackendImage, what: str) -> None:
    try:
        await image.set_record(DIRTY, guard=True)
    except Exception:
        return
    raise Broken(f"set_record of {what} returned")


CLAIM_CHECKS: Final[Sequence[Callable[[Place], Awaitable[None]]]] = (
    an_open_claims_the_image_once,
    a_record_stays_with_its_image,
    an_image_opened_for_reading_keeps_its_record,
    dirty_data_of_another_host_keeps_an_image_closed,
    a_cancelled_record_is_the_old_one_or_the_new_one,
)
