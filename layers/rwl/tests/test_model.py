"""A stack of rwl layers reads like a byte array, whatever is done to it and whenever its processes die.

Runs are the same every time; a soak run makes up new ones and prints what reproduces a failure.
"""

from collections.abc import Sequence

import trio
from hypothesis import given

from fusecache.testing import AttemptMode
from layers.rwl.tests.support.effort import effort
from layers.rwl.tests.support.run import Run
from layers.rwl.tests.support.steps import ATTEMPTS, FLUSHED, GROUPED, RUNS, SIZES, STACKS, Step
from layers.rwl.tests.support.world import LayerKind, World


@effort(150)
@given(size=SIZES, kinds=STACKS, attempts=ATTEMPTS, steps=RUNS)
def test_a_stack_reads_like_a_byte_array_whenever_its_processes_die(
    size: int, kinds: Sequence[LayerKind], attempts: AttemptMode, steps: Sequence[Step]
) -> None:
    trio.run(Run(World.new(size, kinds, attempts)).play, steps)


@effort(50)
@given(size=SIZES, kinds=GROUPED, attempts=ATTEMPTS, steps=FLUSHED)
def test_between_groups_the_image_is_what_a_disk_could_be_whenever_a_process_dies(
    size: int, kinds: Sequence[LayerKind], attempts: AttemptMode, steps: Sequence[Step]
) -> None:
    trio.run(Run(World.new(size, kinds, attempts)).play, steps)
