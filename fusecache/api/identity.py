"""What an image is, whatever its name.

Owns the identity's canonical text and its digest. It must not know how a backend finds it.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """The lasting identity of one image; a rename keeps it, a copy does not have it.

    Attributes:
        text: canonical, printable, at most 512 characters; begins with the backend's type and a colon, for example
            ``directory:<uuid>:<inode number>``. Compared whole at every open.
    """

    text: str

    @property
    def digest(self) -> str:
        """32 hexadecimal digits of the text's SHA-256; names files and directories."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]

    def __str__(self) -> str:
        return self.text
