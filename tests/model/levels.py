"""What a stack of layers must read like: one byte array for each level.

Owns the model that stacks are compared with. Pure; it must not know how a stack does it.
"""

from collections.abc import Sequence


class Levels:
    """The bytes seen at each level: ``levels[0]`` is the image, ``levels[i + 1]`` what layer *i* shows.

    Args:
        size: the image's length.
        holding: for each layer, bottom up, whether it keeps changes until they are written back; others pass them on.
    """

    def __init__(self, size: int, holding: Sequence[bool]) -> None:
        self.holding = holding
        self.levels = [bytes(size) for _ in range(len(holding) + 1)]

    @property
    def size(self) -> int:
        """The length."""
        return len(self.levels[0])

    @property
    def top(self) -> bytes:
        """What the stack reads like."""
        return self.levels[-1]

    def change(self, offset: int, new: bytes) -> None:
        """Put *new* at *offset*, from the top."""
        level = len(self.holding)
        self._put(level, self.top[:offset] + new + self.top[offset + len(new) :])

    def resize(self, size: int) -> None:
        """Cut every level, or add zeroes."""
        self.levels = [level[:size] + bytes(max(0, size - len(level))) for level in self.levels]

    def write_back(self, index: int) -> None:
        """Put everything that layer *index* shows into the level below."""
        self._put(index, self.levels[index + 1])

    def write_everything_back(self) -> None:
        """The same for all layers, top down."""
        for index in reversed(range(len(self.holding))):
            self.write_back(index)

    def drop(self, index: int) -> None:
        """Have layer *index*, and all above it, show what is below."""
        for level in range(index + 1, len(self.levels)):
            self.levels[level] = self.levels[index]

    def _put(self, level: int, content: bytes) -> None:
        self.levels[level] = content
        while level and not self.holding[level - 1]:
            level -= 1
            self.levels[level] = content
