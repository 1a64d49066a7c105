"""Every check of backends catches a backend that breaks its promise."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import pytest
import trio

from fusecache.api import Backend, BackendImage, Claim, Identity, ImageInfo
from fusecache.api.errors import ImageBusy, ImageExists
from fusecache.testing import MemoryBackend, MemoryImage, MemoryVolume, check_backend
from fusecache.testing import backend_checks as checks
from fusecache.testing.harness import keep
from fusecache.testing.place import Place
from fusecache.testing.sparse import SparseBytes


def copy_wholly(backend: Backend, old: str, new: str) -> None:
    """Copy an image, and what it says it is with it."""
    assert isinstance(backend, MemoryBackend)
    image = backend.images[old]
    backend.images[new] = MemoryImage(new, SparseBytes(image.content.size), identity=image.identity)
    backend.images[new].content.write(0, image.content.read(0, image.content.size))


def changes(backend: Backend) -> object:
    """Return what the memory backend keeps of its images."""
    assert isinstance(backend, MemoryBackend)
    return [(image.name, image.key, image.changes, image.identity) for image in backend.images.values()]


class ForgetsToList(MemoryBackend):
    async def list(self) -> Sequence[ImageInfo]:
        return [info for info in await super().list() if not info.name.startswith(".")]


class CreatesOver(MemoryBackend):
    async def create(self, name: str, size: int) -> ImageInfo:
        self.images.pop(name, None)
        return await super().create(name, size)


class ChecksBeforeItWaits(MemoryBackend):
    async def create(self, name: str, size: int) -> ImageInfo:
        if name in self.images:
            raise ImageExists(name)
        await trio.lowlevel.checkpoint()
        image = self.images[name] = MemoryImage(name, SparseBytes(size))
        return image.info()


class ListingWrites(MemoryBackend):
    async def list(self) -> Sequence[ImageInfo]:
        for image in self.images.values():
            image.changes += 1
        return await super().list()


class ListingGivesIdentities(MemoryBackend):
    async def list(self) -> Sequence[ImageInfo]:
        for image in self.images.values():
            image.identity = Identity(f"{image.identity}:listed")
        return await super().list()


class RaisesKeyErrors(MemoryBackend):
    async def lookup(self, name: str) -> ImageInfo:
        return self.images[name].info()


class OpensForAll(MemoryBackend):
    def _require_unowned(self, image: MemoryImage) -> None:
        pass


class LocksAfterItWaits(MemoryBackend):
    @asynccontextmanager
    async def open(
        self, name: str, claim: Claim, *, read_only: bool = False, dedicated: bool = False
    ) -> AsyncIterator[BackendImage]:
        self._require_unowned(self._image(name))
        await trio.lowlevel.checkpoint()
        image = self._image(name)
        image.owner = "somebody"
        try:
            yield MemoryVolume(image=image, read_only=read_only)
        finally:
            image.owner = None


class NeverCloses(MemoryBackend):
    @asynccontextmanager
    async def open(
        self, name: str, claim: Claim, *, read_only: bool = False, dedicated: bool = False
    ) -> AsyncIterator[BackendImage]:
        async with super().open(name, claim):
            yield MemoryVolume(image=self.images[name], read_only=read_only)


class ReadOnlyInNameOnly(MemoryBackend):
    @asynccontextmanager
    async def open(
        self, name: str, claim: Claim, *, read_only: bool = False, dedicated: bool = False
    ) -> AsyncIterator[BackendImage]:
        async with super().open(name, claim) as volume:
            yield volume


class ForgetsAtClose(MemoryBackend):
    @asynccontextmanager
    async def open(
        self, name: str, claim: Claim, *, read_only: bool = False, dedicated: bool = False
    ) -> AsyncIterator[BackendImage]:
        content = self._image(name).content
        before = content.read(0, content.size)
        async with super().open(name, claim, read_only=read_only) as volume:
            yield volume
        content.write(0, before[: content.size])


class RenameChangesTheKey(MemoryBackend):
    async def rename(self, old: str, new: str) -> None:
        await super().rename(old, new)
        self.images[new].key += "'"


class RenamesOver(MemoryBackend):
    async def rename(self, old: str, new: str) -> None:
        if old != new and old in self.images:
            self.images.pop(new, None)
        await super().rename(old, new)


class TellsTheOldName(MemoryBackend):
    async def rename(self, old: str, new: str) -> None:
        await super().rename(old, new)
        image = self.images[new]
        if image.owner:
            self.images[new] = replace(image, name=new)
            image.name = old


class RemovesWhatIsOpen(MemoryBackend):
    async def remove(self, name: str) -> None:
        self._image(name)
        del self.images[name]


class NewIdentityAtEveryOpen(MemoryBackend):
    opens = 0

    @asynccontextmanager
    async def open(
        self, name: str, claim: Claim, *, read_only: bool = False, dedicated: bool = False
    ) -> AsyncIterator[BackendImage]:
        async with super().open(name, claim, read_only=read_only) as volume:
            self.opens += 1
            volume.identity = Identity(f"memory:{name}:{self.opens}")
            yield volume


class SnapshotsOnlyInName(MemoryBackend):
    @asynccontextmanager
    async def open(
        self, name: str, claim: Claim, *, read_only: bool = False, dedicated: bool = False
    ) -> AsyncIterator[BackendImage]:
        async with super().open(name, claim, read_only=read_only) as volume:
            yield volume
            for snapshot in self._image(name).snapshots.values():
                snapshot.content = self._image(name).content


class HalfRenamed(MemoryBackend):
    async def rename(self, old: str, new: str) -> None:
        self._require_free(new)
        self.images[new] = replace(self._image(old), name=new)
        await trio.lowlevel.checkpoint()
        del self.images[old]


class HalfCreated(MemoryBackend):
    async def create(self, name: str, size: int) -> ImageInfo:
        await super().create(name, 0)
        await trio.lowlevel.checkpoint()
        self.images[name].content.resize(size)
        return self.images[name].info()


class CancelledOpensStayLocked(MemoryBackend):
    @asynccontextmanager
    async def open(
        self, name: str, claim: Claim, *, read_only: bool = False, dedicated: bool = False
    ) -> AsyncIterator[BackendImage]:
        image = self._image(name)
        if image.owner:
            raise ImageBusy(name)
        image.owner = "somebody"
        await trio.lowlevel.checkpoint()
        try:
            yield MemoryVolume(image=image, read_only=read_only)
        finally:
            image.owner = None


BROKEN: Final[Sequence[tuple[Callable[[Place], Awaitable[None]], type[MemoryBackend]]]] = (
    (checks.a_created_image_is_listed_and_reads_as_zeroes, ForgetsToList),
    (checks.create_never_replaces_an_image, CreatesOver),
    (checks.create_never_replaces_an_image, ChecksBeforeItWaits),
    (checks.listing_and_lookup_write_nothing, ListingWrites),
    (checks.listing_and_lookup_write_nothing, ListingGivesIdentities),
    (checks.what_is_no_image_is_not_found, RaisesKeyErrors),
    (checks.an_open_image_has_one_owner, OpensForAll),
    (checks.of_many_opens_at_once_one_succeeds, LocksAfterItWaits),
    (checks.a_closed_image_refuses_requests, NeverCloses),
    (checks.an_image_opened_for_reading_cannot_be_changed, ReadOnlyInNameOnly),
    (checks.acknowledged_data_survives_closing, ForgetsAtClose),
    (checks.a_rename_keeps_key_identity_and_bytes, RenameChangesTheKey),
    (checks.rename_never_replaces_an_image, RenamesOver),
    (checks.an_open_image_tells_its_present_name_and_size, TellsTheOldName),
    (checks.remove_takes_the_image_and_nothing_else, RemovesWhatIsOpen),
    (checks.identity_survives_reopening_and_is_nobody_elses, NewIdentityAtEveryOpen),
    (checks.a_copy_is_another_image, MemoryBackend),
    (checks.a_snapshot_keeps_what_was_acknowledged, SnapshotsOnlyInName),
    (checks.a_cancelled_change_of_names_happened_or_not, HalfRenamed),
    (checks.a_cancelled_change_of_names_happened_or_not, HalfCreated),
    (checks.a_cancelled_open_holds_nothing, CancelledOpensStayLocked),
)


@pytest.mark.parametrize(("check", "broken"), BROKEN, ids=[broken.__name__ for _, broken in BROKEN])
async def test_a_check_catches_a_broken_backend(
    check: Callable[[Place], Awaitable[None]],
    broken: type[MemoryBackend],
    autojump_clock: trio.testing.MockClock,
) -> None:
    @asynccontextmanager
    async def make_place() -> AsyncIterator[Place]:
        yield Place(broken(), copy_wholly, changes)

    promise = check.__name__.replace("_", " ")
    with pytest.raises(AssertionError, match=f"^{promise}: (?!raised)"):
        await keep(check, make_place)


async def test_check_backend_checks_names_and_bytes() -> None:
    class ShortReads(MemoryVolume):
        async def read(self, *args: Any) -> list[bytes]:
            return [b""]

    class HandsOutShortReads(MemoryBackend):
        @asynccontextmanager
        async def open(
            self, name: str, claim: Claim, *, read_only: bool = False, dedicated: bool = False
        ) -> AsyncIterator[BackendImage]:
            async with super().open(name, claim):
                yield ShortReads(image=self.images[name])

    @asynccontextmanager
    async def make_backend() -> AsyncIterator[Backend]:
        yield HandsOutShortReads()

    with pytest.raises(AssertionError, match=r"a read of .* bytes returned 0"):
        await check_backend(make_backend)


def test_every_check_is_seen_to_fail() -> None:
    assert {check for check, _ in BROKEN} == set(checks.BACKEND_CHECKS)
