"""The name of a pool file.

Owns how it is made from the image's identity and the layer index. Pure: it must not know directories.
"""

import re
from typing import Final
from urllib.parse import quote

from fusecache.api import Identity

_BACKEND_SIZE: Final = 16
_POOL_SIZE: Final = 100
_IMAGE_SIZE: Final = 48
_CUT_ESCAPE: Final = re.compile(r"%.?\Z")


def pool_name(identity: Identity, index: int) -> str:
    """Return ``rwl.<backend>.<pool>.<image id>.<digest of the identity>.<layer index>.pool``.

    Backend, pool and image id are the identity's text up to its first colon, between, and from its last one on, for
    people to read: all but ASCII letters, digits, ``_``, ``-`` and ``~`` is escaped as in a URL, the dot as ``%2E``,
    and what is too long is cut off at its end. The digest is of the whole text: other images have other names. The
    name is ASCII, at most 230 bytes with an index of up to ten digits, and leads out of no directory.

    Raises:
        ValueError: the index is negative.
    """
    if index < 0:
        raise ValueError(f"a layer index is at least 0, found {index}")
    backend, _, rest = identity.text.partition(":")
    pool, _, image = rest.rpartition(":")
    parts = (_part(backend, _BACKEND_SIZE), _part(pool, _POOL_SIZE), _part(image, _IMAGE_SIZE))
    return f"rwl.{'.'.join(parts)}.{identity.digest}.{index}.pool"


def _part(text: str, size: int) -> str:
    escaped = quote(text, safe="").replace(".", "%2E")
    return escaped if len(escaped) <= size else _CUT_ESCAPE.sub("", escaped[:size])
