"""Whatever a loss of power leaves on the devices, what was promised to be durable is there.

Runs are the same every time; a soak run makes up new ones and prints what reproduces a failure.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

import trio
from hypothesis import given
from hypothesis import strategies as st

from fusecache.testing import AttemptMode
from layers.rwl.tests.support.effort import effort
from layers.rwl.tests.support.recorded_image import is_marked, is_torn
from layers.rwl.tests.support.recording import LegalState, legal_states
from layers.rwl.tests.support.run import Run, content_after_crash
from layers.rwl.tests.support.steps import ATTEMPTS, POWERED, SMALL, STACKS, UNMOVED, Step
from layers.rwl.tests.support.timeline import after_power_loss
from layers.rwl.tests.support.world import IMAGE, LayerKind, World, mark, opened, pool

SIZE = 24 << 10
STATES = 6
"""How many losses of power are tried after each run."""
AGAIN = 2
"""How many while each of them is recovered."""


@effort(60)
@given(kinds=STACKS, attempts=ATTEMPTS, steps=POWERED, seed=st.integers(0, 1 << 32))
def test_after_a_loss_of_power_a_stack_holds_what_was_flushed(
    kinds: Sequence[LayerKind], attempts: AttemptMode, steps: Sequence[Step], seed: int
) -> None:
    run, states = lose_power(World.new(SIZE, kinds, attempts), steps, seed)
    for state in states:
        found = recover(run.world.after(state.contents), seed)
        if run.world.persists_each:
            run.history.expect_prefix(found, state.instant, flushed_only=False)
        else:
            run.history.expect_generation(found, state.instant, flushed=True)


@effort(60)
@given(kinds=STACKS, attempts=ATTEMPTS, steps=UNMOVED, seed=st.integers(0, 1 << 32))
def test_what_a_log_recovers_is_a_prefix_of_what_was_appended(
    kinds: Sequence[LayerKind], attempts: AttemptMode, steps: Sequence[Step], seed: int
) -> None:
    paused = [replace(kind, ring=1 << 20, paused=True) for kind in kinds]
    run, states = lose_power(World.new(SIZE, paused, attempts), steps, seed)
    assert not any(run.world.image)
    for state in states:
        found = recover(run.world.after(state.contents), seed)
        run.history.expect_prefix(found, state.instant, flushed_only=not run.world.persists_each)


@effort(60)
@given(kinds=STACKS, attempts=ATTEMPTS, rounds=st.lists(SMALL, min_size=2, max_size=6), seed=st.integers(0, 1 << 32))
def test_what_one_loss_of_power_took_away_never_comes_back_after_another(
    kinds: Sequence[LayerKind], attempts: AttemptMode, rounds: Sequence[Sequence[Step]], seed: int
) -> None:
    world = World.new(SIZE, [replace(kind, paused=True) for kind in kinds], attempts)
    shown = world.image
    for number, steps in enumerate(rounds):
        run = Run(world, shown)
        trio.run(run.play, steps)
        rng = random.Random(seed + number)
        instant = rng.randint(run.judged_since, world.timeline.now)
        world = world.after(after_power_loss(world.timeline, instant, rng))
        shown = trio.run(content_after_crash, world)
        run.history.expect_prefix(shown, instant, flushed_only=not world.persists_each)


@effort(60)
@given(kinds=STACKS, attempts=ATTEMPTS, steps=POWERED, seed=st.integers(0, 1 << 32))
def test_without_the_pools_the_image_is_what_a_disk_could_be_after_a_loss_of_power(
    kinds: Sequence[LayerKind], attempts: AttemptMode, steps: Sequence[Step], seed: int
) -> None:
    run, states = lose_power(World.new(SIZE, kinds, attempts), steps, seed)
    for state in states:
        if not is_torn(state.contents[mark(0)]) and all(kind.order == "strict" for kind in kinds[1:]):
            run.history.expect_generation(state.contents[IMAGE], state.instant, flushed=False)
        if len(kinds) > 1 and not is_torn(state.contents[mark(1)]):
            found = recover(without_top(run.world, state), seed)
            run.history.expect_generation(found, state.instant, flushed=False)


def lose_power(world: World, steps: Sequence[Step], seed: int) -> tuple[Run, Sequence[LegalState]]:
    """Carry out *steps*, and return the run and what losses of power since its last crash leave."""
    run = Run(world)
    trio.run(run.play, steps)
    print(f"seed {seed}: {world.timeline.now} events, judged since {run.judged_since}")
    return run, list(legal_states(world.timeline, random.Random(seed), STATES, since=run.judged_since))


def recover(world: World, seed: int) -> bytes:
    """Return what the stack holds; losing power while it recovers, or writing all back, must change nothing."""
    found = trio.run(content_after_crash, world)
    for state in legal_states(world.timeline, random.Random(seed), AGAIN):
        again = world.after(state.contents)
        assert trio.run(content_after_crash, again) == found, f"recovered otherwise after instant {state.instant}"
    trio.run(write_back, world)
    assert world.image == found, "written back, and the image holds other bytes"
    return found


async def write_back(world: World) -> None:
    """Write everything back, top down."""
    async with opened(world) as stack:
        for layer in reversed(stack.layers):
            await layer.writeback()
    assert not any(is_marked(world.devices[mark(index)].content) for index in range(len(world.kinds)))


def without_top(world: World, state: LegalState) -> World:
    """Return what is left when the top layer is dropped."""
    top = len(world.kinds) - 1
    kept = {name: content for name, content in state.contents.items() if name not in (pool(top), mark(top))}
    rest = World(world.kinds[:top], world.attempts, world.seed, devices=dict(world.devices))
    return rest.after(kept)
