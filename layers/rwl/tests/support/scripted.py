"""A level below that answers attempts as a test says, and the orders of a row of generations.

Owns both ends of :class:`fusecache_rwl.chain.Chain`. It must not know what is tested.
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import trio

from fusecache.api import DECLINED, DONE, PENDING, Attempt, Done
from fusecache.testing import MemoryVolume
from fusecache_rwl.ledger import Generation
from layers.rwl.tests.support.bench import SIZE

Answer: TypeAlias = Literal["pending", "done", "declined"] | Exception


def times(count: int, answer: Answer = "pending") -> Sequence[Answer]:
    """Return an answer so many times."""
    return [answer] * count


class ScriptedVolume(MemoryVolume):
    """An image in memory; attempts are PENDING, until :meth:`end`, unless the script says otherwise.

    Attributes:
        writes, flushes: what the next attempts are answered; a raised exception is one of them.
        asked: what was asked for, in order: the offset of a write, or "flush"; "flush()" is the asynchronous one.
        under_way: attempts that have not ended, in order: what they do, and whom they tell.
    """

    def __init__(self) -> None:
        super().__init__(SIZE, attempts="done")
        self.writes: list[Answer] = []
        self.flushes: list[Answer] = []
        self.asked: list[int | str] = []
        self.under_way: list[tuple[Callable[[], object], Done]] = []

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        self.asked.append(offset)
        kept = memoryview(bytes(data))
        return self._answer(self.writes, lambda: self.content.write(offset, kept), done)

    def try_flush(self, done: Done) -> Attempt:
        self.asked.append("flush")
        return self._answer(self.flushes, lambda: None, done)

    async def flush(self) -> None:
        self.asked.append("flush()")
        await super().flush()

    def _answer(self, script: list[Answer], apply: Callable[[], object], done: Done) -> Attempt:
        answer = script.pop(0) if script else "pending"
        if isinstance(answer, Exception):
            raise answer
        if answer == "pending":
            self.under_way.append((apply, done))
            return PENDING
        if answer == "declined":
            return DECLINED
        apply()
        return DONE

    def end(self, error: BaseException | None = None, at: int = 0) -> None:
        """End the attempt that is under way, or of several the one with that number."""
        apply, done = self.under_way.pop(at)
        if error is None:
            apply()
        done(error)

    async def end_all(self, over: trio.Event) -> None:
        """End what is under way, one by one, until *over*."""
        while not over.is_set():
            if self.under_way:
                self.end()
            await trio.lowlevel.checkpoint()


class Row:
    """The orders of a row: *generations* follow each other.

    Attributes:
        generations: as they are now; fewer, where a test takes some away.
        kept: the numbers of those that are durable below.
        asked: with what :meth:`follower` was called.
        moved_bytes: what went below.
        must_settle: none can be kept before :attr:`settled` is set.
        failure: raised when it is.
        troubles: raised by the method of that name, when it is called for the time of that number.
    """

    def __init__(self, generations: Sequence[Generation]) -> None:
        self.generations = list(generations)
        self.kept: list[int] = []
        self.asked: list[int] = []
        self.moved_bytes = 0
        self.must_settle = False
        self.settled = trio.Event()
        self.failure: Exception | None = None
        self.troubles: dict[tuple[str, int], Exception] = {}
        self._calls: dict[str, int] = {}

    def follower(self, ahead: int) -> Generation | None:
        """Return the next one."""
        self._called("follower")
        self.asked.append(ahead)
        at = len(self.kept) + ahead
        return self.generations[at] if at < len(self.generations) else None

    def moved(self, length: int) -> None:
        """Count it."""
        self._called("moved")
        self.moved_bytes += length

    async def settle(self) -> None:
        """Wait for :attr:`settled`, where one must."""
        if self.must_settle:
            await self.settled.wait()
            self.must_settle = False
            if self.failure is not None:
                raise self.failure

    def keep(self, generation: Generation) -> None:
        """Remember it."""
        assert not self.must_settle
        self._called("keep")
        self.kept.append(generation.number)

    def _called(self, method: str) -> None:
        count = self._calls[method] = self._calls.get(method, 0) + 1
        if (method, count) in self.troubles:
            raise self.troubles[method, count]
