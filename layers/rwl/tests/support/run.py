"""One run: steps carried out on a stack, and all that is found compared with what the history allows.

Owns how a step becomes requests, when a process dies, and when which rule is checked. It must not know how runs are
made up, nor the rules.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import trio

from fusecache.api import DECLINED, DONE, PENDING, Buffers, Volume, joined
from fusecache.api.errors import LayerDirty
from fusecache_rwl.format import RING_OFFSET, SUPERBLOCK_SIZE
from fusecache_rwl.superblock import newest
from layers.rwl.tests.support.history import History
from layers.rwl.tests.support.recorded_image import is_torn
from layers.rwl.tests.support.steps import Ask, Burst, Die, Invalidate, Reopen, Resize, Step, WriteBack
from layers.rwl.tests.support.world import IMAGE, Open, World, mark, opened, pool

PATIENCE: Final = 30.0


async def content(volume: Volume) -> bytes:
    """Read a whole volume."""
    return joined(await volume.read(0, volume.size)) if volume.size else b""


async def content_after_crash(world: World) -> bytes:
    """Open the stack, read all of it, and close it."""
    with trio.fail_after(PATIENCE):
        async with opened(world) as stack:
            return await content(stack.top)


class Request:
    """One request under way; its buffer is spoilt when it has ended, as the caller's may be."""

    def __init__(self, ended: Callable[["Request"], None], data: bytes) -> None:
        self.buffer = bytearray(data)
        self.found = b""
        self.error: BaseException | None = None
        self.over = trio.Event()
        self._ended = ended

    def done(self, error: BaseException | None, buffers: Buffers = ()) -> None:
        """Take the end."""
        assert not self.over.is_set(), "a request ended twice"
        self.error = error
        self.found = joined(buffers)
        self.buffer[:] = b"\xdb" * len(self.buffer)
        if error is None:
            self._ended(self)
        self.over.set()


class Run:
    """What a writer does to one world, process after process.

    Args:
        shown: what the stack shows, where that is more than the image below holds.

    Attributes:
        history: what it was told.
        judged_since: the instant from which on the history judges; what was before it has forgotten.
    """

    def __init__(self, world: World, shown: bytes | None = None) -> None:
        self.world = world
        self.history = History(world.image if shown is None else shown)
        self.judged_since = 0
        self._failure: Exception | None = None
        self._lagging = shown is not None
        self._resizing: int | None = None
        self._invalidating = False
        self._then: int | None = None
        self._written = world.seed << 32
        self._below = 0
        # What goes below in groups of an upper layer is, to those under it, one generation.
        self._judges_image = all(kind.order == "strict" for kind in world.kinds[1:])
        world.devices[IMAGE].changed = self._judge_image
        world.devices[pool(0)].changed = self._judge_between_groups

    async def play(self, steps: Sequence[Step]) -> None:
        """Carry out *steps*; closes the stack in the end, unless its process has died.

        Raises:
            AssertionError: something is not as promised.
        """
        left = iter(steps)
        with trio.fail_after(PATIENCE):
            while not await self._live(left):
                pass

    async def _live(self, steps: Iterator[Step]) -> bool:
        """Live one process; True when no steps are left."""
        die_in, self._then = self._then, None
        over = False
        try:
            async with opened(self.world, die_in=die_in) as stack:
                await self._begin(stack)
                while stack.alive:
                    step = next(steps, None)
                    over = step is None
                    if step is None or isinstance(step, Reopen):
                        break
                    await self._take(stack, step)
        except Exception:
            # Whatever a dead process comes to has not happened.
            if self._failure is None and not self.world.timeline.dying:
                raise
        if self._failure is not None:
            raise self._failure
        return over

    async def _begin(self, stack: Open) -> None:
        """Compare what an opened stack shows with the history, and go on from there."""
        found = await content(stack.top)
        if not stack.alive:
            return
        now = self.world.timeline.now
        if self._resizing is not None and stack.top.size == self._resizing:
            self.history.resize(self._resizing)
        self._resizing = None
        try:
            there = self.history.expect_prefix(found, now, flushed_only=False)
        except AssertionError as error:
            if self._invalidating:
                await self._expect_invalidated(stack)
                return
            self._fail(error)
        self._invalidating = False
        self.history.resolve(there, now)
        self.judged_since = now

    async def _take(self, stack: Open, step: Step) -> None:
        match step:
            case Ask():
                await self._burst(stack, Burst((step,), False))
            case Burst():
                await self._burst(stack, step)
            case WriteBack():
                await self._writeback(stack, step.layer)
            case Invalidate():
                await self._invalidate(stack, dirty=step.dirty)
            case Resize():
                await self._resize(stack, step.size)
            case Die():
                self.world.timeline.die_at = self.world.timeline.now + step.events
                self._then = step.then

    # ---- requests ----

    async def _burst(self, stack: Open, burst: Burst) -> None:
        taken: list[tuple[int, int, bool]] = []
        requests: list[tuple[Request, bytes]] = []
        async with trio.open_nursery() as nursery:
            if burst.writeback:
                nursery.start_soon(self._writeback, stack, None)
                await trio.lowlevel.checkpoint()
            for ask in burst.asks:
                if ask.kind == "flush" or not stack.top.size:
                    requests.append((self._submit_flush(stack, ask.attempt, nursery), b""))
                    continue
                offset, length = ask.fit(stack.top.size)
                changes = ask.kind != "read"
                if any(offset < end and start < offset + length and (changes or c) for start, end, c in taken):
                    continue
                taken.append((offset, offset + length, changes))
                requests.append(self._submit(stack, ask, offset, length, nursery))
        for request, expected in requests:
            await request.over.wait()
            if stack.alive and request.error is not None:
                self._fail(AssertionError(f"a request failed: {request.error!r}"))
            if stack.alive and request.found != expected:
                self._fail(AssertionError("a read found other bytes than were last written"))
        self._expect_marks(stack)

    def _submit_flush(self, stack: Open, attempt: bool, nursery: trio.Nursery) -> Request:
        flush = self.history.begin_flush()

        def ended(request: Request) -> None:
            if stack.alive:
                self.history.end_flush(flush, self.world.timeline.now)

        request = Request(ended, b"")
        outcome = stack.top.try_flush(request.done) if attempt else DECLINED
        if outcome is DONE:
            request.done(None)
        elif outcome is DECLINED:
            nursery.start_soon(self._run, request, stack.top.flush)
        return request

    def _submit(self, stack: Open, ask: Ask, offset: int, length: int, nursery: trio.Nursery) -> tuple[Request, bytes]:
        if ask.kind == "read":
            return self._submit_read(stack, ask, offset, length, nursery)
        self._written += 1
        # Never zeroes, and never twice the same: a sector tells whose it is.
        data = random.Random(self._written).randbytes(length) if ask.kind == "write" else bytes(length)
        change = self.history.begin(offset, data, self.world.timeline.now)

        def ended(request: Request) -> None:
            if stack.alive:
                self.history.end(change, self.world.timeline.now)

        request = Request(ended, data)
        top = stack.top
        outcome = DECLINED
        if ask.kind == "write":
            view = memoryview(request.buffer)
            if ask.attempt:
                outcome = top.try_write(offset, view, request.done)
            if outcome is DECLINED:
                nursery.start_soon(self._run, request, lambda: top.write(offset, view))
        else:
            if ask.attempt:
                outcome = getattr(top, f"try_{ask.kind}")(offset, length, request.done)
            if outcome is DECLINED:
                nursery.start_soon(self._run, request, lambda: getattr(top, ask.kind)(offset, length))
        if outcome is DONE:
            request.done(None)
        return request, b""

    def _submit_read(
        self, stack: Open, ask: Ask, offset: int, length: int, nursery: trio.Nursery
    ) -> tuple[Request, bytes]:
        expected = self.history.current()[offset : offset + length]
        request = Request(lambda _: None, b"")
        outcome = stack.top.try_read(offset, length, request.done) if ask.attempt else DECLINED
        if outcome is DECLINED:
            nursery.start_soon(self._run, request, lambda: stack.top.read(offset, length))
        elif outcome is not PENDING:
            request.done(None, outcome)
        return request, expected

    async def _run(self, request: Request, call: Callable[[], object]) -> None:
        try:
            result = await call()  # type: ignore[misc]
        except Exception as error:
            request.done(error)
        else:
            request.done(None, result or ())

    # ---- the other steps ----

    async def _writeback(self, stack: Open, layer: int | None) -> None:
        before = self.history.acknowledged()
        count = len(stack.layers)
        for index in reversed(range(count)) if layer is None else [layer % count]:
            await stack.layers[index].writeback()
        if stack.alive and (layer is None or count == 1):
            self.history.written_back(before, self.world.timeline.now)
            self._judge_image()
            self._lagging = False

    async def _invalidate(self, stack: Open, *, dirty: bool) -> None:
        was_dirty = stack.top.status().dirty_bytes > 0
        self._invalidating = dirty
        self._lagging = self._lagging or dirty
        try:
            await stack.top.invalidate(dirty=dirty)
        except LayerDirty:
            if dirty or not was_dirty:
                self._fail(AssertionError("invalidate refused a layer that is clean, or that it was to drop dirty"))
            return
        if not stack.alive:
            return
        if dirty:
            await self._expect_invalidated(stack)
        elif await content(stack.top) != self.history.current() and stack.alive:
            self._fail(AssertionError("a clean layer was dropped, and the stack reads other bytes"))

    async def _expect_invalidated(self, stack: Open) -> None:
        """The stack shows what the level below the top does; go on from there."""
        shown = await content(stack.top)
        hidden = await content(stack.layers[-2]) if len(stack.layers) > 1 else self.world.image
        if not stack.alive:
            return
        if shown != hidden:
            self._fail(AssertionError("the dropped layer does not show the level below"))
        self._invalidating = False
        self._lagging = True
        self.history = History(shown)
        self.judged_since = self.world.timeline.now
        await self._writeback(stack, None)

    async def _resize(self, stack: Open, size: int) -> None:
        self._resizing = size
        lagging, self._lagging = self._lagging, True
        await stack.top.resize(size)
        if not stack.alive:
            return
        self._resizing = None
        self.history.resize(size)
        self._lagging = lagging
        if await content(stack.top) != self.history.current() and stack.alive:
            self._fail(AssertionError("after a resize the stack reads other bytes"))

    # ---- checks ----

    def _judge_image(self) -> None:
        """Look at the bytes of the image after each store, whatever is under way; but not in mid-group."""
        if not is_torn(self.world.devices[mark(0)].content):
            self._judge()

    def _judge_between_groups(self) -> None:
        """Look at them when the pool's superblock says that more is written back, also while the mark says torn."""
        content = self.world.devices[pool(0)].content
        written_back = newest(content[:SUPERBLOCK_SIZE], content[SUPERBLOCK_SIZE:RING_OFFSET]).written_back
        if written_back > self._below:
            self._judge()
        self._below = written_back

    def _judge(self) -> None:
        if self._failure is not None or self._lagging or not self._judges_image:
            return
        try:
            self.history.expect_generation(self.world.image, self.world.timeline.now, flushed=False)
        except AssertionError as error:
            # Not raised here: this may be in the middle of a write-back, which would try again.
            self._failure = error

    def _expect_marks(self, stack: Open) -> None:
        for layer, held in zip(stack.layers, stack.marks, strict=True):
            if stack.alive and layer.status().dirty_bytes and not held.is_set:
                self._fail(AssertionError("a layer holds dirty data and is not marked so"))

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        raise error
