"""What a plugin tells of one of its pool files, for people and for scripts.

Owns the shape of an inspection. It must not know any format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Fact: TypeAlias = "str | int | float | bool | Mapping[str, Fact] | None"
"""JSON-compatible; what takes a unit has it in its key, for example ``used_bytes``."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a pool file holds.

    Attributes:
        title: one line: what the file is, and whose.
        facts: in the order to be shown; a mapping among them is a group.
        picture: lines of a drawing of what is dirty, in order.
        problems: what is damaged, each naming the record or block and what is wrong with it; none in a good file.
    """

    title: str
    facts: Mapping[str, Fact]
    picture: Sequence[str] = ()
    problems: Sequence[str] = ()
