"""The judge of contents knows what a history allows, and finds what it does not."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layers.rwl.tests.support.effort import effort
from layers.rwl.tests.support.history import SECTOR, Change, History, NotAllowed

BLOCKS = 4
LATE = 1000
"""An instant after everything."""


def block(filler: str) -> bytes:
    """Return one sector."""
    return filler.encode() * SECTOR


def image(blocks: str) -> bytes:
    """Return an image with a sector for each letter; a dot is zero."""
    return b"".join(bytes(SECTOR) if filler == "." else block(filler) for filler in blocks)


class Writer:
    """Writes letters to blocks, one after the other, each at an instant of its own."""

    def __init__(self, blocks: int = BLOCKS) -> None:
        self.history = History(bytes(blocks * SECTOR))
        self.now = 0

    def begin(self, at: int, letters: str) -> Change:
        """Begin to write *letters*, a block each."""
        self.now += 1
        return self.history.begin(at * SECTOR, image(letters), self.now)

    def end(self, change: Change) -> None:
        """Have it acknowledged."""
        self.now += 1
        self.history.end(change, self.now)

    def write(self, at: int, letters: str) -> None:
        """Begin and end."""
        self.end(self.begin(at, letters))

    def flush(self) -> None:
        """Begin and end a flush."""
        flush = self.history.begin_flush()
        self.now += 1
        self.history.end_flush(flush, self.now)

    def killed(self, blocks: str, instant: int = LATE) -> None:
        """Judge what was found after the process died."""
        self.history.expect_prefix(image(blocks), instant, flushed_only=False)

    def unpowered(self, blocks: str, instant: int = LATE) -> None:
        """Judge what was found after power was lost."""
        self.history.expect_prefix(image(blocks), instant, flushed_only=True)

    def below(self, blocks: str, instant: int = LATE) -> int:
        """Judge what the level below holds."""
        return self.history.expect_generation(image(blocks), instant, flushed=False)


def test_after_a_kill_every_acknowledged_write_is_there() -> None:
    writer = Writer()
    writer.write(0, "a")
    writer.write(1, "b")
    writer.killed("ab..")
    for lost in ("a...", ".b..", "....", "xb.."):
        with pytest.raises(NotAllowed):
            writer.killed(lost)


def test_after_a_kill_an_older_write_must_not_come_back() -> None:
    writer = Writer()
    writer.write(0, "a")
    writer.write(0, "b")
    with pytest.raises(NotAllowed):
        writer.killed("a...")


def test_after_a_kill_what_was_under_way_is_there_or_not_but_never_in_part() -> None:
    writer = Writer()
    writer.write(0, "a")
    writer.begin(1, "bc")
    writer.killed("a...")
    writer.killed("abc.")
    with pytest.raises(NotAllowed):
        writer.killed("ab..")


def test_after_a_loss_of_power_a_prefix_is_there_that_has_all_that_was_flushed() -> None:
    writer = Writer()
    writer.write(0, "a")
    writer.flush()
    writer.write(1, "b")
    writer.write(2, "c")
    for prefix in ("a...", "ab..", "abc."):
        writer.unpowered(prefix)
    for wrong in ("....", "a.c.", ".bc."):
        with pytest.raises(NotAllowed):
            writer.unpowered(wrong)


def test_a_discard_is_a_change_like_any_other() -> None:
    writer = Writer()
    writer.write(0, "a")
    writer.write(0, ".")
    writer.write(1, "b")
    writer.unpowered("....")
    writer.unpowered("a...")
    writer.unpowered(".b..")
    with pytest.raises(NotAllowed):
        writer.unpowered("ab..")


def test_changes_beside_each_other_may_be_in_any_order_but_those_before_them_come_first() -> None:
    writer = Writer()
    writer.write(0, "a")
    first, second = writer.begin(1, "b"), writer.begin(2, "c")
    writer.end(second)
    writer.end(first)
    writer.write(3, "d")
    for allowed in ("....", "a...", "ab..", "a.c.", "abc.", "abcd"):
        writer.unpowered(allowed)
    for wrong in (".b..", "ab.d", "a.cd"):
        with pytest.raises(NotAllowed):
            writer.unpowered(wrong)


def test_a_crash_is_judged_by_what_was_known_at_its_instant() -> None:
    writer = Writer()
    writer.write(0, "a")
    before = writer.now
    writer.write(1, "b")
    writer.flush()
    writer.unpowered("a...", before)
    writer.killed("a...", before)
    with pytest.raises(NotAllowed):
        writer.unpowered("ab..", before)
    with pytest.raises(NotAllowed):
        writer.unpowered("a...")


def test_a_flush_covers_only_what_was_acknowledged_before_it_was_called() -> None:
    writer = Writer()
    change = writer.begin(0, "a")
    flush = writer.history.begin_flush()
    writer.end(change)
    writer.history.end_flush(flush, writer.now)
    writer.unpowered("....")


def test_what_was_not_there_after_a_crash_stays_away() -> None:
    writer = Writer()
    writer.write(0, "a")
    writer.begin(1, "b")
    there = writer.history.expect_prefix(image("a..."), writer.now, flushed_only=False)
    writer.history.resolve(there, writer.now)
    writer.write(2, "c")
    writer.killed("a.c.")
    with pytest.raises(NotAllowed):
        writer.killed("abc.")


def test_the_level_below_holds_a_generation_in_any_part_and_those_before_it_wholly() -> None:
    writer = Writer()
    writer.write(0, "a")
    writer.write(1, "b")
    writer.flush()
    writer.write(0, "c")
    writer.write(2, "d")
    for allowed, generation in (("....", 0), (".b..", 0), ("ab..", 0), ("abd.", 1), ("cbd.", 1)):
        assert writer.below(allowed) == generation
    for wrong in ("c...", "a.d.", ".bd.", "ab.d"):
        with pytest.raises(NotAllowed):
            writer.below(wrong)


def test_the_level_below_never_falls_behind_what_was_written_back() -> None:
    writer = Writer()
    writer.write(0, "a")
    before = writer.now
    writer.history.written_back(writer.history.acknowledged(), writer.now + 1)
    writer.now += 1
    writer.below("a...")
    writer.below("....", before)
    with pytest.raises(NotAllowed):
        writer.below("....")


def test_what_is_below_and_what_is_flushed_must_both_be_there_after_a_loss_of_power() -> None:
    writer = Writer()
    writer.write(0, "a")
    writer.flush()
    writer.write(1, "b")
    history = writer.history
    for allowed in ("a...", "ab.."):
        history.expect_generation(image(allowed), LATE, flushed=True)
    with pytest.raises(NotAllowed):
        history.expect_generation(image("...."), LATE, flushed=True)


def test_a_change_beside_a_flush_is_of_either_generation() -> None:
    writer = Writer()
    change = writer.begin(0, "a")
    writer.flush()
    writer.end(change)
    writer.write(1, "b")
    writer.below("a...")
    writer.below(".b..")


def test_a_shorter_image_forgets_what_was_cut_off() -> None:
    writer = Writer()
    writer.write(0, "abcd")
    writer.history.resize(SECTOR + 100)
    writer.history.resize(3 * SECTOR)
    assert writer.history.current() == image("a") + b"b" * 100 + bytes(412) + bytes(SECTOR)


@effort(100)
@given(seed=st.integers(0, 1 << 32))
def test_every_prefix_is_allowed_and_every_generation_with_any_part_of_it(seed: int) -> None:
    rng = random.Random(seed)
    writer = Writer(8)
    contents, generations, acknowledged = [image("." * 8)], [0], [0]
    for number in range(rng.randint(1, 20)):
        length = rng.randint(1, 3)
        at = rng.randrange(8 - length + 1)
        letters = rng.choice(("." * length, chr(ord("A") + number) * length))
        writer.write(at, letters)
        last = contents[-1]
        contents.append(last[: at * SECTOR] + image(letters) + last[(at + length) * SECTOR :])
        if rng.random() < 0.3:
            writer.flush()
            generations.append(len(contents) - 1)
        acknowledged.append(generations[-1])
    history = writer.history
    for number in range(acknowledged[-1], len(contents)):
        history.expect_prefix(contents[number], LATE, flushed_only=True)
    bounds = [*generations, len(contents) - 1]
    old, new = rng.choice(list(itertools.pairwise(bounds)))
    mixed = b"".join(contents[rng.choice((old, new))][at : at + SECTOR] for at in range(0, len(contents[0]), SECTOR))
    history.expect_generation(mixed, LATE, flushed=False)
