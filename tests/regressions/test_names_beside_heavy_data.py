"""Looking up a name took seconds while large reads of cached data kept coming: 64 of them went first, at each step."""

import pytest
import trio

from tests.support.fake_kernel import serving
from tests.support.nodes import ScriptedFile

LOOKUP = 1
READERS = 32
SIZE = 1 << 20


async def test_a_name_request_gets_its_turn_between_few_large_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, slots=64) as served:
        kernel, handle = served.kernel, served.open(ScriptedFile(end=SIZE))
        answered: list[int] = []

        def read_again(unique: int) -> None:
            # Each reader comes with its next request as soon as it has its data, so there is always one more.
            answered.append(unique)
            if len(answered) < 5000:
                kernel.read(handle, 0, SIZE)

        kernel.takes_data = read_again
        for _ in range(READERS):
            kernel.read(handle, 0, SIZE)
        while len(answered) < 100:
            await trio.lowlevel.checkpoint()
        before = len(answered)
        unique = kernel.send(LOOKUP, b"name\0")
        await served.names.receive()
        relayed = len(answered)
        # When the reply is written, not when this task learns of it.
        replied: dict[int, int] = {}
        kernel.sees_reply = lambda unique: replied.update({unique: len(answered)})
        served.names.answer(unique)
        assert (await kernel.reply()).unique == unique
        # What stood in the queue when it came, and from then on a few at each step.
        assert relayed - before <= READERS + 4
        assert replied[unique] - relayed <= 4
        kernel.takes_data = lambda unique: None
