"""Every check of who may open an image, and of its record, catches a backend that breaks its promise."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import pytest
import trio

from fusecache.api import Backend, BackendImage, Claim, Identity, ImageRecord
from fusecache.api.errors import NotSupported
from fusecache.testing import FreeClaim, MemoryBackend, MemoryImage, MemoryVolume, check_backend
from fusecache.testing import claim_checks as checks
from fusecache.testing.harness import keep
from fusecache.testing.place import Place


class AsksNobody(MemoryBackend):
    @asynccontextmanager
    async def open(self, name: str, claim: Claim, **options: Any) -> AsyncIterator[BackendImage]:
        async with super().open(name, FreeClaim(claim.host, take_over=claim.take_over), **options) as volume:
            yield volume


class AsksForAnotherImage(MemoryBackend):
    @asynccontextmanager
    async def open(self, name: str, claim: Claim, **options: Any) -> AsyncIterator[BackendImage]:
        async with super().open(name, FreeClaim(claim.host, take_over=claim.take_over), **options) as volume:
            await claim(Identity("memory:another"), "")
            yield volume


class StaysLockedWhenRefused(MemoryBackend):
    @asynccontextmanager
    async def open(self, name: str, claim: Claim, **options: Any) -> AsyncIterator[BackendImage]:
        image = self._image(name)
        self._require_unowned(image)
        image.owner = "somebody"
        await claim(image.identity, "")
        image.owner = None
        async with super().open(name, FreeClaim(claim.host, take_over=claim.take_over), **options) as volume:
            yield volume


class WithVolumes(MemoryBackend):
    """Opens volumes of another class."""

    volume: type[MemoryVolume] = MemoryVolume

    @asynccontextmanager
    async def open(
        self, name: str, claim: Claim, *, read_only: bool = False, dedicated: bool = False
    ) -> AsyncIterator[BackendImage]:
        async with super().open(name, claim):
            volume = self.volume(image=self.images[name], read_only=read_only)
            try:
                yield volume
            finally:
                volume.close()


class ForgetsTheManifest(WithVolumes):
    class volume(MemoryVolume):  # noqa: N801
        async def set_record(self, record: ImageRecord, *, guard: bool) -> None:
            await super().set_record(replace(record, manifest=record.manifest[:100]), guard=guard)


class RecordsByName(WithVolumes):
    async def rename(self, old: str, new: str) -> None:
        record = self._image(old).record
        await super().rename(old, new)
        self.images[new].record = None
        self.images[old] = replace(self.images[new], name=old, record=record)


class RecordsOfReaders(WithVolumes):
    class volume(MemoryVolume):  # noqa: N801
        async def set_record(self, record: ImageRecord, *, guard: bool) -> None:
            self.image.record = record


class OpensWhatIsDirtyElsewhere(MemoryBackend):
    def _require_held_here(self, image: MemoryImage, claim: Claim) -> None:
        pass


class NamesNoHost(MemoryBackend):
    def _require_held_here(self, image: MemoryImage, claim: Claim) -> None:
        if image.record is not None:
            super()._require_held_here(replace(image, record=replace(image.record, holder_name="")), claim)


class KnowsNoTakeover(MemoryBackend):
    def _require_held_here(self, image: MemoryImage, claim: Claim) -> None:
        super()._require_held_here(image, FreeClaim(claim.host))


class HalfRecorded(WithVolumes):
    class volume(MemoryVolume):  # noqa: N801
        async def set_record(self, record: ImageRecord, *, guard: bool) -> None:
            self.image.record = None
            await trio.lowlevel.checkpoint()
            await super().set_record(record, guard=guard)


BROKEN: Final[Sequence[tuple[Callable[[Place], Awaitable[None]], type[MemoryBackend]]]] = (
    (checks.an_open_claims_the_image_once, AsksNobody),
    (checks.an_open_claims_the_image_once, AsksForAnotherImage),
    (checks.an_open_claims_the_image_once, StaysLockedWhenRefused),
    (checks.a_record_stays_with_its_image, ForgetsTheManifest),
    (checks.a_record_stays_with_its_image, RecordsByName),
    (checks.an_image_opened_for_reading_keeps_its_record, RecordsOfReaders),
    (checks.dirty_data_of_another_host_keeps_an_image_closed, OpensWhatIsDirtyElsewhere),
    (checks.dirty_data_of_another_host_keeps_an_image_closed, NamesNoHost),
    (checks.dirty_data_of_another_host_keeps_an_image_closed, KnowsNoTakeover),
    (checks.a_cancelled_record_is_the_old_one_or_the_new_one, HalfRecorded),
)


@pytest.mark.parametrize(("check", "broken"), BROKEN, ids=[broken.__name__ for _, broken in BROKEN])
async def test_a_check_catches_a_broken_backend(
    check: Callable[[Place], Awaitable[None]], broken: type[MemoryBackend]
) -> None:
    @asynccontextmanager
    async def make_place() -> AsyncIterator[Place]:
        yield Place(broken())

    promise = check.__name__.replace("_", " ")
    with pytest.raises(AssertionError, match=f"^{promise}: "):
        await keep(check, make_place)


async def test_check_backend_checks_who_may_open_an_image() -> None:
    @asynccontextmanager
    async def make_backend() -> AsyncIterator[Backend]:
        yield AsksNobody()

    with pytest.raises(AssertionError, match="an open claims the image once"):
        await check_backend(make_backend)


async def test_an_image_without_a_durable_identity_needs_no_record() -> None:
    class CannotKeepRecords(WithVolumes):
        class volume(MemoryVolume):  # noqa: N801
            durable_identity = False

            async def set_record(self, record: ImageRecord, *, guard: bool) -> None:
                raise NotSupported("no attributes")

    @asynccontextmanager
    async def make_place() -> AsyncIterator[Place]:
        yield Place(CannotKeepRecords())

    for check in checks.CLAIM_CHECKS:
        await keep(check, make_place)


def test_every_check_is_seen_to_fail() -> None:
    assert {check for check, _ in BROKEN} == set(checks.CLAIM_CHECKS)
