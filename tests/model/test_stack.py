"""An open image over a whole stack reads like a byte array, whatever is done to it.

Runs are the same every time; a soak run makes up new ones and prints what reproduces a failure.
"""

import itertools
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio
from hypothesis import given

from fusecache.api import DONE, Attempt, Backend, Buffers, LayerPlugin, Volume, joined
from fusecache.api.errors import LayerDirty
from fusecache.config.schema import LayerConfig, StackConfig
from fusecache.images.image import Image
from fusecache.mount import running_completions
from fusecache.stack import assemble
from fusecache.stack.discover import load
from fusecache.state.store import StateStore
from fusecache.testing import AttemptMode, MemoryBackend
from fusecache.testing.claims import FreeClaim
from fusecache.testing.file_sync import ThreadFileSync
from tests.model.levels import Levels
from tests.model.steps import RUNS, SIZES, Ask, Burst, Grow, Invalidate, Reopen, Resize, Seek, Step, WriteBack
from tests.support.places import directory_backend
from tests.support.writeback_layer import WritebackPlugin

PATIENCE: Final = 30.0

MakeBackend = Callable[[Path], AbstractAsyncContextManager[Backend]]


@asynccontextmanager
async def memory(directory: Path, *, alignment: int, attempts: AttemptMode) -> AsyncIterator[Backend]:
    """Open a backend in memory."""
    yield MemoryBackend(alignment=alignment, attempts=attempts)


STACKS: Final[Sequence[tuple[MakeBackend, Sequence[str]]]] = (
    (directory_backend, ("passthrough",)),
    (partial(directory_backend, direct=True), ("passthrough", "passthrough")),
    (partial(memory, alignment=1, attempts="done"), ()),
    (partial(memory, alignment=512, attempts="pending"), ("passthrough",)),
    (partial(memory, alignment=512, attempts="declined"), ("writeback", "passthrough")),
    (partial(memory, alignment=1, attempts="pending"), ("writeback", "passthrough", "writeback")),
)
"""Backends, and the layers over each, bottom up."""


@pytest.fixture(scope="module", autouse=True)
def writeback_is_installed() -> Iterator[None]:
    """Let stacks load the layer of these tests as well."""

    def load_any(name: str) -> LayerPlugin:
        return WritebackPlugin() if name == "writeback" else load(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "load", load_any)
        yield


@pytest.mark.parametrize(
    ("make_backend", "layers"),
    STACKS,
    ids=["-".join((str(number), *layers)) for number, (_, layers) in enumerate(STACKS)],
)
@given(size=SIZES, steps=RUNS)
def test_a_stack_reads_like_a_byte_array(
    make_backend: MakeBackend, layers: Sequence[str], size: int, steps: Sequence[Step]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(play, make_backend, layers, Path(directory), size, steps)


async def play(
    make_backend: MakeBackend, layers: Sequence[str], directory: Path, size: int, steps: Sequence[Step]
) -> None:
    """Carry out *steps*, comparing with the model throughout, and in the end with the bare image."""
    model = Levels(size, [layer == "writeback" for layer in layers])
    images = directory / "images"
    images.mkdir()
    with trio.fail_after(PATIENCE):
        async with make_backend(images) as backend:
            await backend.create("image", size)
            for reopen, session in itertools.groupby([*steps, Ask("read", 0, size, 0)], lambda step: step == Reopen()):
                if not reopen:
                    async with open_image(backend, layers, directory / "state") as image:
                        for step in session:
                            await take(image, model, step)
                        await expect_content(image, model)
            async with backend.open("image", FreeClaim(take_over=True)) as bare:
                assert await content(bare) == model.levels[0]


@asynccontextmanager
async def open_image(backend: Backend, layers: Sequence[str], state_dir: Path) -> AsyncIterator[Image]:
    """Open the image as a mount does."""
    configs = [LayerConfig(index=index, plugin=plugin) for index, plugin in enumerate(layers)]
    async with (
        running_completions() as completions,
        assemble.open_stack(
            backend=backend,
            name="image",
            configured=StackConfig(images=("*",), layers=tuple(reversed(configs))),
            store=StateStore(state_dir),
            completions=completions,
            file_sync=ThreadFileSync(completions),
            emit=lambda kind, text: None,
        ) as stack,
    ):
        image = Image(stack, await stack.image.info(), lambda image: None)
        yield image
        image.close()


class Reply:
    """The end of one request; its data is spoilt then, as a caller may."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.found = b""
        self.error: BaseException | None = None
        self.ended = trio.Event()

    def done(self, error: BaseException | None, buffers: Buffers = ()) -> None:
        """Take the end."""
        assert not self.ended.is_set(), "a request ended twice"
        self.error = error
        self.found = joined(buffers)
        self.data[:] = bytes(len(self.data))
        self.ended.set()

    async def wait(self) -> bytes:
        """Return what was read; raises the request's error."""
        await self.ended.wait()
        if self.error is not None:
            raise self.error
        return self.found


def submit(image: Image, model: Levels, ask: Ask) -> tuple[Reply, bytes]:
    """Start a request; return its reply and what that must be, and carry the change out in the model."""
    if not model.size or ask.kind == "flush":
        reply = Reply(bytearray())
        _settle(reply, image.flush(reply.done))
        return reply, b""
    offset, length = ask.fit(model.size)
    if ask.kind == "read":
        reply = Reply(bytearray())
        _settle(reply, image.read(offset, length, reply.done))
        return reply, model.top[offset : offset + length]
    new = random.Random(ask.seed).randbytes(length) if ask.kind == "write" else bytes(length)
    reply = Reply(bytearray(new))
    if ask.kind == "write":
        _settle(reply, image.write(offset, memoryview(reply.data), reply.done))
    else:
        _settle(reply, getattr(image, ask.kind)(offset, length, reply.done))
    model.change(offset, new)
    return reply, b""


def _settle(reply: Reply, outcome: Buffers | Attempt) -> None:
    if not isinstance(outcome, Attempt):
        reply.done(None, outcome)
    elif outcome is DONE:
        reply.done(None)


async def take(image: Image, model: Levels, step: Step) -> None:
    """Carry out one step on the image and on the model."""
    match step:
        case Ask():
            await take_burst(image, model, Burst((step,), "nothing"))
        case Burst():
            await take_burst(image, model, step)
        case Seek() if model.size:
            await take_seek(image, model, step)
        case WriteBack():
            await take_writeback(image, model, step)
        case Invalidate() if model.holding:
            await take_invalidate(image, model, step.layer % len(model.holding), step.dirty)
        case Resize():
            await image.resize(step.size)
            if step.size < model.size:
                # A shrink writes everything back first.
                model.write_everything_back()
            model.resize(step.size)
            assert image.size == step.size
        case Grow():
            await image.grow(step.size)
            model.resize(max(step.size, model.size))


async def take_burst(image: Image, model: Levels, burst: Burst) -> None:
    """Submit all requests at once: each must see those that came before it, and none that came after."""
    async with trio.open_nursery() as nursery:
        if burst.beside == "writeback":
            nursery.start_soon(image.writeback, None)
            await trio.lowlevel.checkpoint()
        replies = [submit(image, model, ask) for ask in burst.asks]
        for reply, expected in replies:
            # Not compared by the assertion itself: pytest would look for the differences for minutes.
            as_expected = await reply.wait() == expected
            assert as_expected
    if burst.beside == "writeback":
        # It may have met any part of the burst; bring image and model to where they agree again.
        await take_writeback(image, model, WriteBack(None))


async def take_seek(image: Image, model: Levels, seek: Seek) -> None:
    """What is passed over must be zeroes; what is found as a hole must be zero."""
    offset = seek.at % model.size
    found = await image.seek(offset, hole=seek.hole)
    if seek.hole:
        assert found is not None
        assert offset <= found <= model.size
        assert model.top[found : found + 1] in (b"", b"\0")
    else:
        end = model.size if found is None else found
        assert offset <= end <= model.size
        assert not any(model.top[offset:end])


async def take_writeback(image: Image, model: Levels, step: WriteBack) -> None:
    """Everything, or one layer."""
    if step.layer is None:
        await image.writeback(None)
        model.write_everything_back()
    elif model.holding:
        index = step.layer % len(model.holding)
        await image.writeback(index)
        model.write_back(index)


async def take_invalidate(image: Image, model: Levels, index: int, dirty: bool) -> None:
    """Dirty data is dropped only where that was asked for, and never from under other dirty data."""
    holds = [layer.layer.status().dirty_bytes > 0 for layer in image.layers]
    if any(holds[index + 1 :]) if dirty else holds[index]:
        with pytest.raises(LayerDirty):
            await image.invalidate(index, dirty=dirty)
        return
    await image.invalidate(index, dirty=dirty)
    if holds[index]:
        model.drop(index)


async def expect_content(image: Image, model: Levels) -> None:
    """The image reads like the model from end to end."""
    await take_burst(image, model, Burst((Ask("read", 0, max(1, model.size), 0),), "nothing"))


async def content(volume: Volume) -> bytes:
    """Read a whole volume."""
    return joined(await volume.read(0, volume.size)) if volume.size else b""
