"""The record that an image carries in its own metadata, as text, and what follows from it for who may open the image.

Owns the record's one encoding. Pure: it must not know where a backend keeps the text.

Format, version 1: two lines of ASCII, each ended by a line feed::

    fusecache-record 1 crc32c 89abcdef
    {"epoch":1,"holder":"…","holder_name":"…","identity":"…","manifest":"…"}

The first names the format version, and the CRC-32C (RFC 3720) of the second line, line feed included, as eight
lower-case hexadecimal digits. The second is JSON with sorted keys and no blanks; all but ASCII is escaped.
``identity`` is the image's: a copy that has its original's metadata does not take its record for its own.
"""

import json
import re
import shlex
from typing import Annotated, Final

from crc32c import crc32c
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fusecache.api import Claim, Identity, ImageRecord
from fusecache.api.errors import CorruptState, Fenced, ImageBusy

FORMAT_VERSION: Final = 1

_HEADER: Final = re.compile(r"fusecache-record (\d{1,9}) (.*)\n", re.ASCII)
_CHECKSUM: Final = re.compile(r"crc32c ([0-9a-f]{8})", re.ASCII)


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    epoch: Annotated[int, Field(ge=1)]
    holder: str | None
    holder_name: str
    identity: str
    manifest: str


def encode(record: ImageRecord, identity: Identity) -> str:
    """Return the text of *record*, which is the record of the image with that identity.

    Raises:
        ValueError: a text in it is no Unicode: a path whose bytes are not UTF-8.
    """
    (record.holder_name + record.manifest).encode()
    return _text(
        _Content(
            epoch=record.epoch,
            holder=record.holder,
            holder_name=record.holder_name,
            identity=identity.text,
            manifest=record.manifest,
        )
    )


def decode(text: str, identity: Identity) -> ImageRecord | None:
    """Return the record whose text is *text*; None where it is another image's, whose copy this one is.

    Raises:
        CorruptState: *text* is not exactly what :func:`encode` makes; the message names the first reason.
        Fenced: it is another image's, and that one had dirty data elsewhere: the copy was made without it.
    """
    content = _decoded(text)
    if content.identity != identity.text:
        if content.holder is not None:
            raise Fenced(
                f"this is a copy of {content.identity}, made while host {content.holder_name or content.holder} held "
                "newer data of it: the copy lacks that data"
            )
        return None
    return ImageRecord(content.epoch, content.holder, content.holder_name, content.manifest)


def check_holder(record: ImageRecord | None, claim: Claim, image: str) -> None:
    """See that no other host holds dirty data of the image, or that *claim* takes over.

    Raises:
        ImageBusy: one does; the message names it, and what to do.
    """
    if record is None or record.holder in (None, claim.host) or claim.take_over:
        return
    quoted = shlex.quote(image)
    raise ImageBusy(
        f"image {image!r} has dirty data on host {record.holder_name or 'without a name'} ({record.holder}), this is "
        f"host {claim.host}: write it back there with `fusecache flush CONFIG {quoted}`, or give that data up with "
        f"`fusecache discard CONFIG {quoted} --layer N --dirty`, the top layer first"
    )


def _text(content: _Content) -> str:
    body = json.dumps(content.model_dump(), sort_keys=True, separators=(",", ":")) + "\n"
    return f"fusecache-record {FORMAT_VERSION} crc32c {crc32c(body.encode()):08x}\n{body}"


def _decoded(text: str) -> _Content:
    header = _HEADER.match(text)
    if header is None:
        raise CorruptState("the image's record does not begin with the header of a record")
    version = int(header[1])
    if version != FORMAT_VERSION:
        raise CorruptState(f"the image's record has format version {version}, this fusecache reads {FORMAT_VERSION}")
    stated, body = _CHECKSUM.fullmatch(header[2]), text[header.end() :]
    computed = crc32c(body.encode(errors="surrogatepass"))
    if stated is None or int(stated[1], 16) != computed:
        raise CorruptState(
            f"the image's record has a wrong checksum: found {header[2]!r}, computed crc32c {computed:08x}"
        )
    try:
        content = _Content.model_validate_json(body)
    except ValidationError as error:
        reason = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors())
        raise CorruptState(f"the image's record has a wrong content: {reason}") from error
    if _text(content) != text:
        raise CorruptState("the image's record is not in canonical form")
    return content
