"""``python -m bench.stopwatch SPANS ARGUMENT...``: fusecache with a stopwatch at each hop of a write.

Owns how spans are taken, inside the real daemon; they are written to SPANS as JSON when it ends. It must not know what
becomes of them.

The methods of :data:`bench.costs.HOPS` are wrapped before anything is made of their classes. The channel's loop has no
methods: what it does is the time from a read of the FUSE descriptor that found a request to the next read. All of it
happens on the loop's thread, without an await in between.
"""

import importlib
import json
import os
import sys
from array import array
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import quantiles
from time import perf_counter_ns
from timeit import Timer
from typing import Any, Final

from bench.costs import CHANNEL, HOPS, READ, Spans, mean
from fusecache.cli.main import main as fusecache

_CALLS: Final = 500
_REPEATS: Final = 100
_WRITE: Final = 80 + 4096
"""Bytes of a request to write 4 KiB: the header, what a write adds to it, and the data."""


class Stopwatches:
    """All stopwatches of one thread.

    Attributes:
        own: the nanoseconds of each call without those of the calls below that have a stopwatch, too; by hop.
    """

    def __init__(self) -> None:
        self.own = {hop.name: array("q") for hop in HOPS}
        self._below = 0

    def at(self, hop: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return *function* with a stopwatch; a call that raises is not in the figures."""
        add, clock = self.own[hop].append, perf_counter_ns

        def call(*arguments: Any) -> Any:
            above, self._below = self._below, 0
            start = clock()
            outcome = function(*arguments)
            took = clock() - start
            add(took - self._below)
            self._below = above + took
            return outcome

        return call

    def at_reads(self, readv: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
        """Return *readv* with a stopwatch for reads of a write, and one for the time from such a read to the next."""
        reads, between, clock = self.own[READ].append, self.own[CHANNEL].append, perf_counter_ns
        ended = 0

        def call(fd: int, parts: Any) -> int:
            nonlocal ended
            start = clock()
            if ended:
                between(start - ended - self._below)
            ended = 0
            length = readv(fd, parts)
            if length == _WRITE:
                reads(clock() - start)
                self._below = 0
                ended = clock()
            return length

        return call


def main() -> None:
    """Run fusecache, and write what the stopwatches said when it ends."""
    path, arguments = Path(sys.argv[1]), sys.argv[2:]
    inside, outside = calibrated()
    watches = Stopwatches()
    for hop in HOPS:
        for module, name, method in hop.methods:
            owner = getattr(importlib.import_module(module), name)
            setattr(owner, method, watches.at(hop.name, getattr(owner, method)))
    os.readv = watches.at_reads(os.readv)
    try:
        fusecache(arguments, prog_name="fusecache")
    finally:
        found = Spans({hop: mean(each) for hop, each in watches.own.items() if each}, inside, outside)
        path.write_text(json.dumps(asdict(found)))


def calibrated() -> tuple[float, float]:
    """Return what a stopwatch takes inside its span and outside of it, in nanoseconds."""

    def nothing(*_: object) -> None:
        pass

    watches = Stopwatches()
    watched = watches.at(READ, nothing)
    loop, bare, both = (
        _per_call("pass", nothing),
        _per_call("call(1, 2, 3)", nothing),
        _per_call("call(1, 2, 3)", watched),
    )
    # Of both, what is undisturbed.
    seen = quantiles(watches.own[READ], n=10)[0]
    # The call itself is the hop's.
    return seen - (bare - loop), both - loop - seen


def _per_call(statement: str, call: Callable[..., Any]) -> float:
    timer = Timer(statement, globals={"call": call})
    return min(timer.repeat(_REPEATS, _CALLS)) / _CALLS * 1e9


if __name__ == "__main__":
    main()
