"""An asynchronous change, built on the attempt beside it.

Owns how a task waits for the end of an attempt. It must not know what is attempted.
"""

from collections.abc import Callable
from typing import Any

import trio

from fusecache.api import DONE, Attempt, Completions, Done


async def completed(completions: Completions, attempt: Callable[[Done], Attempt]) -> None:
    """Run an attempt that never declines to its end. A cancellation before it has no effect, a later one waits."""
    await trio.lowlevel.checkpoint_if_cancelled()

    def submit(finish: Callable[[BaseException | None, Any], None]) -> None:
        if attempt(lambda error: finish(error, None)) is DONE:
            finish(None, None)

    await completions.call(submit)
