"""A read that waits for a thread may be cancelled; what it reads keeps its place until the thread has ended."""

import trio

from layers.rwl.tests.support.bench import BLOCK, Bench, block, read, write
from layers.rwl.tests.support.failing_medium import PATIENCE


async def test_a_read_that_is_cancelled_ends_at_once_and_its_place_is_kept_until_the_threads_have_ended(
    bench: Bench,
) -> None:
    async with bench.opened() as layer:
        for number in range(3):
            await write(layer, number, number)
        await layer.flush()
        bench.medium.cold = True
        bench.medium.hold("read")
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(layer.read, 0, 3 * BLOCK)
                await bench.medium.wait_held(3)
                assert layer._log.space.pinned
                nursery.cancel_scope.cancel()
        assert len(bench.medium.held) == 3
        assert layer._log.space.pinned
        bench.medium.let_go()
        assert await read(layer, 0, 3) == b"".join(map(block, range(3)))
        assert not layer._log.space.pinned
