"""The durable record of an image's stack, and of which layers are dirty.

Owns the manifest's content and its one encoding. Pure: it must not know where manifests are kept.

Format, version 4: two lines of UTF-8, each ended by a line feed::

    fusecache-manifest 4 crc32c 89abcdef
    {"epoch":1,"host":"…","identity":"…","layers":[…]}

The first names the format version, and the CRC-32C (RFC 3720) of the second line, line feed included, as eight
lower-case hexadecimal digits. The second is JSON with sorted keys, no blanks, and no character escaped that need not
be, so that equal manifests have equal bytes.
"""

import json
import re
from typing import Annotated, Final

from crc32c import crc32c
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from fusecache.api.errors import CorruptState

FORMAT_VERSION: Final = 4

_HEADER: Final = re.compile(rb"fusecache-manifest (\d{1,9}) (.*)\n", re.ASCII)
_CHECKSUM: Final = re.compile(rb"crc32c ([0-9a-f]{8})", re.ASCII)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ManifestLayer(_Record):
    """One layer of the stack.

    Attributes:
        index: the layer index.
        plugin: the plugin's name.
        options: the layer's own options as the config gave them; JSON-compatible.
        artifacts: absolute paths of all files the layer owns or may yet create.
        dirty: the layer may hold data that is not durable in the level below.
        torn: the level below may be between two points of the order in which the layer writes back; only if *dirty*.
        torn_beyond: it may be so by more than one whole that the layer's files tell of; only if *torn*.
        holds_group: so may the levels under a layer above, of which this one may hold a part; only if *dirty*.
        files_id: which of the files that ever had the names in *artifacts* hold the dirty data, as the layer tells them
            apart; only if *dirty*. Empty: the layer does not.
    """

    index: Annotated[int, Field(ge=0)]
    plugin: str
    options: dict[str, JsonValue] = {}
    artifacts: tuple[str, ...] = ()
    dirty: bool = False
    torn: bool = False
    torn_beyond: bool = False
    holds_group: bool = False
    files_id: str = ""

    @model_validator(mode="after")
    def _torn_is_dirty(self) -> "ManifestLayer":
        if self.leaves_torn and not self.dirty:
            found = "is torn" if self.torn else "holds a group"
            raise ValueError(f"found a layer that {found} and is not dirty, allowed: such layers that are dirty")
        if self.torn_beyond and not self.torn:
            raise ValueError("found a layer that is torn beyond a group and is not torn, allowed: such that are torn")
        if self.files_id and not self.dirty:
            raise ValueError("found files_id of a layer that is not dirty, allowed: of such that are dirty")
        return self

    @property
    def leaves_torn(self) -> bool:
        """Whether a level may be torn without what the layer has dirty."""
        return self.torn or self.holds_group

    def cleaned(self) -> "ManifestLayer":
        """Return the layer as it is once nothing of it is dirty."""
        words = {"dirty": False, "torn": False, "torn_beyond": False, "holds_group": False}
        return self.model_copy(update={**words, "files_id": ""})


class Manifest(_Record):
    """What one host durably knows about one image's stack.

    Attributes:
        identity: the image's identity text.
        epoch: the image's epoch when the manifest was written.
        host: machine-id of the host that wrote it.
        layers: bottom up: indexes ascend.
    """

    identity: str
    epoch: Annotated[int, Field(ge=1)]
    host: str
    layers: tuple[ManifestLayer, ...] = ()

    @field_validator("layers")
    @classmethod
    def _ascend(cls, layers: tuple[ManifestLayer, ...]) -> tuple[ManifestLayer, ...]:
        indexes = [layer.index for layer in layers]
        if indexes != sorted(set(indexes)):
            raise ValueError(f"found layer indexes {indexes}, allowed: ascending ones, each once")
        return layers

    @property
    def dirty(self) -> bool:
        """Whether any layer is dirty."""
        return any(layer.dirty for layer in self.layers)


def encode(manifest: Manifest) -> bytes:
    """Return the bytes of *manifest*.

    Raises:
        ValueError: an option is no finite number, or a text is no Unicode: a path whose bytes are not UTF-8.
    """
    content = manifest.model_dump()
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    body = text.encode() + b"\n"
    return b"fusecache-manifest %d crc32c %08x\n%b" % (FORMAT_VERSION, crc32c(body), body)


def decode(data: bytes) -> Manifest:
    """Return the manifest whose bytes are *data*.

    Raises:
        CorruptState: *data* is not exactly what :func:`encode` makes of a manifest. The message names the first
            reason: no header, another format version (both are named), a wrong checksum, or a wrong content.
    """
    header = _HEADER.match(data)
    if header is None:
        raise CorruptState("the manifest does not begin with the header of a manifest")
    version = int(header[1])
    if version != FORMAT_VERSION:
        raise CorruptState(f"the manifest has format version {version}, this fusecache reads version {FORMAT_VERSION}")
    stated, body = _CHECKSUM.fullmatch(header[2]), data[header.end() :]
    if stated is None or int(stated[1], 16) != crc32c(body):
        found = header[2].decode("ascii", "backslashreplace")
        raise CorruptState(f"the manifest's checksum is wrong: found {found!r}, computed crc32c {crc32c(body):08x}")
    try:
        manifest = Manifest.model_validate_json(body)
        same = encode(manifest) == data
    except ValidationError as error:
        reason = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors())
        raise CorruptState(f"the manifest's content is wrong: {reason}") from error
    except ValueError as error:
        raise CorruptState(f"the manifest's content is wrong: {error}") from error
    if not same:
        raise CorruptState("the manifest's content is not in canonical form")
    return manifest
