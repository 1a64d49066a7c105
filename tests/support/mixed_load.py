"""A program that changes and reads its own parts of an image at random, and knows what must be in them.

Owns the requests and the reference. Several run at once over one file; part *n* of 64 KiB belongs to number *n* modulo
their count. It must not know what serves the file.

Run as ``python -m tests.support.mixed_load FILE REFERENCE SEED NUMBER COUNT SECONDS``: FILE and REFERENCE begin as
zeroes; at the end, this number's parts of REFERENCE hold what FILE must hold. Prints how many requests it made; fails
at the first wrong byte.
"""

import mmap
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fusecache.backends import syscalls

PART = 64 << 10


class Buffered:
    """Reads and writes through the kernel's page cache."""

    flags = 0

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | self.flags)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.fd, length, offset)

    def write(self, offset: int, data: bytes) -> None:
        assert os.pwrite(self.fd, data, offset) == len(data)

    def flush(self) -> None:
        os.fsync(self.fd)


class Direct(Buffered):
    """Goes past the page cache, with any offset and length."""

    flags = os.O_DIRECT


class Mapped(Buffered):
    """Reads and writes through a shared memory map."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._memory = mmap.mmap(self.fd, os.fstat(self.fd).st_size)

    def read(self, offset: int, length: int) -> bytes:
        return self._memory[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        self._memory[offset : offset + len(data)] = data

    def flush(self) -> None:
        self._memory.flush()


STYLES = (Buffered, Direct, Mapped)


class Load:
    """Random requests to the parts of one number, until told to end."""

    def __init__(self, path: Path, seed: int, number: int, count: int) -> None:
        self._random = random.Random(f"{seed}/{number}")
        self._file = STYLES[number % len(STYLES)](path)
        self._size = path.stat().st_size
        self.reference = bytearray(self._size)
        self.parts = range(number * PART, self._size, count * PART)
        self._actions: list[tuple[Callable[[int, int], None], int]] = [
            (self._write, 8),
            (self._read, 8),
            (self._discard, 1),
            (self._zero, 1),
            (self._flush, 1),
        ]

    def run(self, seconds: float) -> int:
        """Make requests for *seconds*; return how many."""
        end = time.monotonic() + seconds
        actions, weights = zip(*self._actions, strict=True)
        requests = 0
        while time.monotonic() < end:
            part = self._random.choice(self.parts)
            first, last = sorted(self._random.sample(range(min(PART, self._size - part) + 1), 2))
            (action,) = self._random.choices(actions, weights)
            action(part + first, last - first)
            requests += 1
        self._file.flush()
        for part in self.parts:
            self._read(part, min(PART, self._size - part))
        return requests

    def _write(self, offset: int, length: int) -> None:
        data = self._random.randbytes(length)
        self._file.write(offset, data)
        self.reference[offset : offset + length] = data

    def _read(self, offset: int, length: int) -> None:
        found, expected = self._file.read(offset, length), self.reference[offset : offset + length]
        if found != expected:
            wrong = next(at for at, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
            sys.exit(f"{self._file.__class__.__name__}: a read of {length} at {offset} is wrong from {offset + wrong}")

    def _discard(self, offset: int, length: int) -> None:
        syscalls.fallocate(self._file.fd, syscalls.PUNCH_HOLE, offset, length)
        self.reference[offset : offset + length] = bytes(length)

    def _zero(self, offset: int, length: int) -> None:
        syscalls.fallocate(self._file.fd, syscalls.ZERO_RANGE, offset, length)
        self.reference[offset : offset + length] = bytes(length)

    def _flush(self, offset: int, length: int) -> None:
        self._file.flush()


def main(path: str, reference: str, seed: str, number: str, count: str, seconds: str) -> None:
    """Run the program."""
    load = Load(Path(path), int(seed), int(number), int(count))
    requests = load.run(float(seconds))
    with Path(reference).open("r+b") as file:
        for part in load.parts:
            file.seek(part)
            file.write(load.reference[part : part + PART])
    print(requests)


if __name__ == "__main__":
    main(*sys.argv[1:])
