"""Which layers of an open image are durably known to be dirty: the manifest and the image's record, changed in order.

Owns the marks that layers set and clear, and the order of the two durable writes behind each. It must not know what a
layer keeps, nor when it should be written back.

The record in the image's metadata is the authority: a host holds dirty data if and only if the record says so. It
names the holder and carries a copy of its manifest, so that it alone suffices. With *M* the local manifest and *R* the
record, a crash after each step leaves:

====  ===============================  ==================================================================
step  of setting the mark of a layer   then
====  ===============================  ==================================================================
1     M says dirty; durable            R does not name the layer, so M's word is void: the next open puts M right, the
                                       layer opens as clean. Nothing was acknowledged, and anybody may open the image
2     R says dirty, with its guard;    this host alone opens the image, and with this layer
      durable
3     the mark is set                  the same; changes are acknowledged from now on
====  ===============================  ==================================================================

====  ===============================  ==================================================================
step  of clearing it                   then
====  ===============================  ==================================================================
1     the mark is not set              as before: this host alone, with this layer, which finds nothing to do
2     R does not name the layer; it    everything is below and anybody may open the image. M's word is void. Where R
      names no holder and has no       still names other layers, only this host may
      guard where no layer is left
3     M says clean                     the same
====  ===============================  ==================================================================

A mark that is set may say, besides, that the level below is *torn*: that the layer is in the middle of what goes below
as one. It is for whoever wants to discard the layer; the layer itself knows from its own files what is to be completed,
or, where it said *torn beyond*, that it is to take for that all that it finds.

====  ===============================  ==================================================================
step  of saying that it is torn, or    then
      of a torn one that it is beyond
====  ===============================  ==================================================================
1     M says so; durable               R does not, so M's word is void: the next open puts M right. Nothing of it
                                       has gone below
2     R says so; durable               no host, and no command, discards the layer unless told that torn will do
3     the mark says so                 the same; now its first byte may go below
====  ===============================  ==================================================================

Of a mark that is not set both words, dirty and torn, are said by the same two writes: in between a crash would leave a
layer that is written back as if nothing were torn.

Taking that back is as clearing: R first, when all of it is durable below, then M. A crash before R leaves the word that
it is torn where it is not; the layer takes it back when it is opened.

**A file that was put back.** A mark says besides which of its files the layer means (*files_id*), by the same two
writes that set it: after every crash the record says either that the layer is clean, or which files its data is in.
That word goes when the mark is cleared, and with a discard (:mod:`fusecache.stack.drop`); a mark that is set over files
that were begun anew names those, and the layer refuses a copy of the old ones. The epoch would not do: it is the
image's, and to raise it fences the layers below, which stay dirty when this one is clean or discarded. Nor would a
number of the layer's: the record of a clean image has none, and one in the state directory begins again where that is
lost. An old state directory brings no old file in either, as the record is the authority.

What another layer has to answer for from then on stands in :mod:`fusecache.stack.torn`: it is kept here and said by the
same writes, and no business of the layers.

A step that fails, or is cancelled, leaves what a crash before or after it leaves. Where step 2 failed, M is put back.
"""

import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from fusecache.api.backend import BackendImage, ImageRecord
from fusecache.api.errors import FusecacheError
from fusecache.stack.claim import HostClaim
from fusecache.stack.plan import PlannedLayer
from fusecache.stack.torn import heir
from fusecache.state.image_state import ImageState
from fusecache.state.manifest import Manifest, encode

log = logging.getLogger(__name__)

_PATIENCE: Final = 3.0
"""Seconds that a close waits for the backend."""


def record_of(manifest: Manifest) -> ImageRecord:
    """Return the record of an image whose stack on this host is as *manifest* says."""
    if not manifest.dirty:
        return ImageRecord(manifest.epoch)
    return ImageRecord(manifest.epoch, manifest.host, os.uname().nodename, encode(manifest).decode())


class LayerMark:
    """One layer's :class:`fusecache.api.DirtyMark`.

    Attributes:
        holds_group: see :mod:`fusecache.stack.torn`; only while *is_set* is.
        files_id: kept when the mark is cleared: a layer that is torn without a mark has it set for the same files.
    """

    def __init__(self, ledger: "DirtyLedger", layer: PlannedLayer) -> None:
        self.index = layer.index
        self.is_set = layer.dirty
        self.is_torn = layer.torn
        self.is_torn_beyond = layer.torn_beyond
        self.holds_group = layer.holds_group
        self.files_id = layer.files_id
        self._ledger = ledger

    def __repr__(self) -> str:
        more = ", torn" * self.is_torn + " beyond" * self.is_torn_beyond + ", holds a group" * self.holds_group
        return f"<LayerMark of layer {self.index}, {'set' if self.is_set else 'not set'}{more}>"

    async def set(self, files_id: str = "") -> None:
        """See :meth:`fusecache.api.DirtyMark.set`."""
        await self._ledger.set(self, files_id)

    async def clear(self) -> None:
        """See :meth:`fusecache.api.DirtyMark.clear`."""
        await self._ledger.clear(self)

    async def tear(self, *, beyond: bool = False) -> None:
        """See :meth:`fusecache.api.DirtyMark.tear`."""
        await self._ledger.tear(self, beyond=beyond)

    async def mend(self) -> None:
        """See :meth:`fusecache.api.DirtyMark.mend`."""
        await self._ledger.mend(self)

    @property
    def words(self) -> dict[str, bool | str]:
        """What the manifest is to say of the layer."""
        return {
            "dirty": self.is_set,
            "torn": self.is_torn,
            "torn_beyond": self.is_torn_beyond,
            "holds_group": self.holds_group,
            "files_id": self.files_id if self.is_set else "",
        }


class DirtyLedger:
    """The marks of all layers of one open image.

    Args:
        claim, image: hold both locks of the image.
        guard: see :meth:`fusecache.api.BackendImage.set_record`.
    """

    def __init__(self, claim: HostClaim, image: BackendImage, *, guard: bool) -> None:
        self._claim = claim
        self._image = image
        self._guard = guard
        self._manifest: Manifest | None = None
        self._marks: dict[int, LayerMark] = {}
        self._turn = trio.Lock()
        self._settled = True
        self._numbers = itertools.count(1)
        self._written = 0

    def mark(self, layer: PlannedLayer) -> LayerMark:
        """Make the mark of a layer that is about to be opened."""
        mark = self._marks[layer.index] = LayerMark(self, layer)
        return mark

    def adopt(self, manifest: Manifest) -> None:
        """Take over the manifest that is durable now, and that the record says the same as; before any mark changes."""
        self._manifest = manifest

    async def set(self, mark: LayerMark, files_id: str) -> None:
        """Set *mark*; see the module."""
        async with self._turn:
            if mark.is_set and mark.files_id == files_id:
                return
            await self._say(self._present(mark, dirty=True, files_id=files_id))
            mark.is_set, mark.files_id = True, files_id

    async def clear(self, mark: LayerMark) -> None:
        """Clear *mark*; see the module."""
        if mark.is_set:
            if mark.is_torn or mark.holds_group:
                self._pass_on(mark)
            mark.is_set = mark.is_torn = mark.is_torn_beyond = mark.holds_group = self._settled = False
        await self.settle()

    async def tear(self, mark: LayerMark, *, beyond: bool) -> None:
        """Have *mark* say torn, and *beyond*; see the module."""
        async with self._turn:
            if mark.is_torn and (mark.is_torn_beyond or not beyond):
                return
            torn = self._present(mark, dirty=True, torn=True, torn_beyond=beyond, files_id=mark.files_id)
            await self._say(torn)
            mark.is_set = mark.is_torn = True
            mark.is_torn_beyond = beyond

    async def mend(self, mark: LayerMark) -> None:
        """Have *mark* say torn no more; see the module."""
        if mark.is_torn:
            self._pass_on(mark)
            mark.is_torn = mark.is_torn_beyond = self._settled = False
        await self.settle()

    def holds_group(self, index: int) -> bool:
        """Whether dirty data of the layer of that index may be of a group; also while a layer above, which is clean by
        now, has still to say so."""
        above = (mark for mark in self._marks.values() if mark.index > index)
        return self._marks[index].holds_group or any(mark.is_torn or mark.holds_group for mark in above)

    def _pass_on(self, mark: LayerMark) -> None:
        # A mark that is only just being set is for changes that came later.
        below = heir((other.index for other in self._marks.values() if other.is_set), mark.index)
        if below is not None:
            self._marks[below].holds_group = True

    async def _say(self, wanted: Manifest) -> None:
        """Steps 1 and 2 of what is said before it is so."""
        with self._changing():
            await self._write_manifest(wanted)
            try:
                await self._image.set_record(record_of(wanted), guard=self._guard)
            except Exception:
                await self._put_back()
                raise

    async def settle(self) -> None:
        """Make durable what the marks say, where a change that failed or was cancelled left something else.

        Raises:
            FusecacheError, OSError: as :meth:`fusecache.api.DirtyMark.clear`.
        """
        if self._settled:
            return
        async with self._turn:
            if self._settled:
                return
            with self._changing():
                wanted = self._present()
                await self._image.set_record(record_of(wanted), guard=self._guard)
                await self._write_manifest(wanted)

    async def close(self) -> None:
        """The last try to :meth:`settle`, once all layers are closed; where it fails the image stays dirty.

        Takes a few seconds at the most, also where the backend does not answer.
        """
        try:
            with trio.fail_after(_PATIENCE):
                await self.settle()
        except trio.TooSlowError:
            log.warning("the image stays marked as dirty, though it is not: the backend does not answer")
        except (FusecacheError, OSError) as error:
            log.warning("the image stays marked as dirty, though it is not, until it is opened again: %s", error)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """What is durable is known again only if the block ends well."""
        self._settled = False
        marks = self._said()
        yield
        # A mark that was cleared meanwhile has its own turn.
        self._settled = marks == self._said()

    def _said(self) -> dict[int, dict[str, bool | str]]:
        return {mark.index: mark.words for mark in self._marks.values()}

    def _present(self, changed: LayerMark | None = None, **words: bool | str) -> Manifest:
        """Return the manifest that says what the marks do, and of *changed* these *words*."""
        assert self._manifest is not None, "the manifest is written before a layer is opened"
        said = self._said()
        if changed is not None:
            said[changed.index] |= words
        layers = tuple(layer.model_copy(update=said.get(layer.index)) for layer in self._manifest.layers)
        return self._manifest.model_copy(update={"layers": layers})

    async def _put_back(self) -> None:
        try:
            await self._write_manifest(self._present())
        except (FusecacheError, OSError) as error:
            log.warning("the manifest says dirty of what is not: %s", error)

    async def _write_manifest(self, manifest: Manifest) -> None:
        await self._claim.use(self._write_newest, next(self._numbers), manifest)

    def _write_newest(self, state: ImageState, number: int, manifest: Manifest) -> None:
        # A write whose caller was cancelled may come late.
        if number > self._written:
            self._written = number
            state.write_manifest(manifest)
