"""A process that dies at any step of what changes who holds dirty data leaves what the tables promise.

The tables stand in ``fusecache.stack.dirty``, ``fusecache.stack.drop`` and ``fusecache.stack.prepare``.
"""

from pathlib import Path

import pytest

from fusecache.api import ImageRecord, joined
from fusecache.api.errors import Fenced, ImageBusy, LayerDirty, PoolMissing
from tests.support.dirty_stacks import (
    NAME,
    dropped,
    host,
    killed_at,
    layer_of,
    pool_of,
    stack_open,
)
from tests.support.places import directory_backend

ALL = 99
"""More steps than there are."""


pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    return host(tmp_path / "elsewhere", "b")


async def record_of(images: Path) -> ImageRecord | None:
    async with directory_backend(images) as backend:
        return await backend.read_record(NAME)


async def expect_dirty(images: Path, here: Path, elsewhere: Path) -> None:
    """This host alone opens the image, and its layer has its mark."""
    with pytest.raises(ImageBusy, match="dirty data on host"):
        async with stack_open(images, elsewhere, 0):
            raise AssertionError("the stack is open")
    async with stack_open(images, here) as stack:
        assert layer_of(stack).mark.is_set


async def expect_clean(images: Path, here: Path, elsewhere: Path, epoch: int = 1) -> None:
    """Any host opens the image; what one writes the other reads, and nothing of before."""
    for state, data in ((elsewhere, b"newer"), (here, b"newest"), (elsewhere, b"again")):
        async with stack_open(images, state, 0) as stack:
            assert stack.epoch == epoch
            assert not layer_of(stack).mark.is_set
            await stack.top.write(0, memoryview(data))
            await stack.writeback()
        async with stack_open(images, here, 0) as stack:
            assert joined(await stack.top.read(0, len(data))) == data
    record = await record_of(images)
    assert record is not None
    assert record.holder is None


@pytest.mark.parametrize("step", [0, 1])
async def test_a_mark_that_was_being_set_holds_nothing(images: Path, here: Path, elsewhere: Path, step: int) -> None:
    assert killed_at(images, here, "set", step)
    await expect_clean(images, here, elsewhere)


async def test_a_mark_that_was_set_holds_the_image(images: Path, here: Path, elsewhere: Path) -> None:
    assert not killed_at(images, here, "set", 2)
    await expect_dirty(images, here, elsewhere)
    async with stack_open(images, here):
        pass
    # It found nothing to be dirty, and said so.
    await expect_clean(images, here, elsewhere)


async def test_a_mark_stays_until_the_record_is_without_it(images: Path, here: Path, elsewhere: Path) -> None:
    assert killed_at(images, here, "clear", 0)
    await expect_dirty(images, here, elsewhere)


@pytest.mark.parametrize(("step", "killed"), [(1, True), (2, False)])
async def test_a_mark_that_the_record_is_without_is_gone(
    images: Path, here: Path, elsewhere: Path, step: int, killed: bool
) -> None:
    assert killed_at(images, here, "clear", step) == killed
    await expect_clean(images, here, elsewhere)


@pytest.mark.parametrize("step", range(4))
async def test_dropping_a_dirty_layer_can_be_repeated(images: Path, here: Path, elsewhere: Path, step: int) -> None:
    assert not killed_at(images, here, "set", ALL)
    pool = pool_of(here)
    assert killed_at(images, here, "drop", step) == (step < 3)
    assert pool.exists() == (step == 0)
    if step == 1:
        with pytest.raises(PoolMissing, match="fusecache discard CONFIG IMAGE --layer 0 --dirty"):
            async with stack_open(images, here):
                raise AssertionError("the stack is open")
    await dropped(images, here, dirty=True)
    assert not pool.exists()
    await expect_clean(images, here, elsewhere)


async def test_another_host_s_layer_is_dropped_by_one_step_and_fenced_from_then_on(
    images: Path, here: Path, elsewhere: Path
) -> None:
    assert not killed_at(images, here, "set", ALL)
    pool = pool_of(here)
    # There are no files to be removed, which is a step as well.
    for step in (0, 1):
        assert killed_at(images, elsewhere, "drop elsewhere", step)
        assert pool.exists()
    assert not killed_at(images, elsewhere, "drop elsewhere", 2)
    assert await record_of(images) == ImageRecord(epoch=2)
    with pytest.raises(Fenced, match="dirty at epoch 1, the image is at epoch 2"):
        async with stack_open(images, here, 0):
            raise AssertionError("the stack is open")
    assert pool.exists()


@pytest.mark.parametrize("step", range(4))
async def test_dropping_a_fenced_layer_can_be_repeated(images: Path, here: Path, elsewhere: Path, step: int) -> None:
    assert not killed_at(images, here, "set", ALL)
    await dropped(images, elsewhere, dirty=True, take_over=True)
    async with stack_open(images, elsewhere, 0) as stack:
        await stack.top.write(0, memoryview(b"newer"))
        await stack.writeback()
    pool = pool_of(here)
    assert killed_at(images, here, "drop", step) == (step < 3)
    if step < 3:
        with pytest.raises(Fenced):
            async with stack_open(images, here, 0):
                raise AssertionError("the stack is open")
        await dropped(images, here, dirty=True)
    assert not pool.exists()
    await expect_clean(images, here, elsewhere, epoch=4 if step == 2 else 3)


async def test_an_image_is_taken_over_by_one_step(images: Path, here: Path, elsewhere: Path) -> None:
    assert not killed_at(images, here, "set", ALL)
    assert killed_at(images, elsewhere, "take over", 0)
    await expect_dirty(images, here, elsewhere)


async def expect_torn(images: Path, here: Path, elsewhere: Path) -> None:
    """No host discards the layer without being told that torn will do; the layer is opened with that word."""
    for state, options in ((here, {}), (elsewhere, {"take_over": True})):
        with pytest.raises(LayerDirty, match="`fusecache discard CONFIG IMAGE --layer 0 --dirty --torn`"):
            await dropped(images, state, dirty=True, **options)
    with pytest.raises(LayerDirty, match="layer 0 is dirty"):
        await dropped(images, here, torn=True)
    assert pool_of(here).exists()
    async with stack_open(images, here) as stack:
        assert layer_of(stack).mark.is_torn
        await stack.top.write(0, memoryview(b"data"))
    with pytest.raises(LayerDirty, match="--torn"):
        await dropped(images, here, dirty=True)


@pytest.mark.parametrize(("command", "step"), [("tear", 0), ("tear", 1), ("mend", 1), ("mend", ALL)])
async def test_a_layer_that_is_not_torn_by_the_record_is_discarded_as_ever(
    images: Path, here: Path, elsewhere: Path, command: str, step: int
) -> None:
    assert killed_at(images, here, command, step) == (step < ALL)
    async with stack_open(images, here) as stack:
        assert not layer_of(stack).mark.is_torn
        await stack.top.write(0, memoryview(b"data"))
    await dropped(images, here, dirty=True)
    await expect_clean(images, here, elsewhere)


@pytest.mark.parametrize("step", [0, 1, 2])
async def test_a_torn_layer_is_torn_beyond_as_soon_as_the_record_says_so(
    images: Path, here: Path, elsewhere: Path, step: int
) -> None:
    assert killed_at(images, here, "tear beyond", step) == (step < 2)
    async with stack_open(images, here) as stack:
        assert layer_of(stack).mark.is_torn_beyond == (step == 2)
        await stack.top.write(0, memoryview(b"data"))
    await expect_torn(images, here, elsewhere)


async def test_a_torn_layer_is_discarded_only_if_torn_will_do(images: Path, here: Path, elsewhere: Path) -> None:
    assert not killed_at(images, here, "tear", ALL)
    await expect_torn(images, here, elsewhere)
    await dropped(images, here, dirty=True, torn=True)
    await expect_clean(images, here, elsewhere)


async def test_a_layer_is_torn_until_the_record_is_without_it_on_another_host_too(
    images: Path, here: Path, elsewhere: Path
) -> None:
    assert killed_at(images, here, "mend", 0)
    await expect_torn(images, here, elsewhere)
    await dropped(images, elsewhere, dirty=True, torn=True, take_over=True)
    # What is fenced goes below no more, so it tears nothing.
    await dropped(images, here, dirty=True)
    await expect_clean(images, here, elsewhere, epoch=3)


async def test_dropping_a_torn_layer_can_be_repeated(images: Path, here: Path, elsewhere: Path) -> None:
    assert not killed_at(images, here, "tear", ALL)
    assert killed_at(images, here, "drop torn", 1)
    with pytest.raises(PoolMissing, match="fusecache discard CONFIG IMAGE --layer 0 --dirty --torn"):
        async with stack_open(images, here):
            raise AssertionError("the stack is open")
    with pytest.raises(LayerDirty, match="--torn"):
        await dropped(images, here, dirty=True)
    await dropped(images, here, dirty=True, torn=True)
    await expect_clean(images, here, elsewhere)


@pytest.mark.parametrize("step", [1, ALL])
async def test_what_was_taken_over_is_fenced_for_ever(images: Path, here: Path, elsewhere: Path, step: int) -> None:
    async with stack_open(images, here, 0) as stack:
        await stack.top.write(0, memoryview(b"lost"))
    killed_at(images, elsewhere, "take over", step)
    async with stack_open(images, elsewhere, 0) as stack:
        assert stack.epoch == 2
        assert joined(await stack.top.read(0, 4)) == bytes(4)
    with pytest.raises(Fenced):
        async with stack_open(images, here, 0):
            raise AssertionError("the stack is open")
    await dropped(images, here, dirty=True)
    await expect_clean(images, here, elsewhere, epoch=3)
