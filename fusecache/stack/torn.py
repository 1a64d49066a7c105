"""Which discards leave a level torn, in a stack of several layers of which one writes back in groups.

Owns how that word passes from layer to layer, and the refusal of a discard. Pure: it must not know what layers keep,
nor how their marks become durable.

A layer that is in the middle of a group says so (*torn*): the level below it has some of the group, and is no disk
without the rest. What belongs to it the layer finds out when it is opened; for that it may have said *beyond* besides
(:meth:`fusecache.api.DirtyMark.tear`), which is the same word to all rules here. If the level below is a layer which
keeps dirty data, it knows of no group, and takes it for what lies between two flushes: the levels under it get parts of
it in any order, and are torn too. They stay so when the group is complete in that layer, until all of it has gone down
from there. So

- while a layer is torn, those under it are not discarded: it is dirty, and lies on top of them;
- from the moment when it is torn no more, as its group is complete below or was discarded, the highest dirty layer
  under it *holds a group*. Both are said by one write of the record, so that a crash leaves the one word or the other;
- when that layer is clean, everything it had is in the level below, and the word passes on in the same way. Where no
  dirty layer is left under it, it ends: the image has the whole group, or what was left of it by who discarded it.

====================================================  ==================================================================
a discard of dirty data                               asks for *torn* where
====================================================  ==================================================================
of one layer, whether or not the image is open        that layer is torn or holds a group
on another host, and taking over from one, which      any layer of that host is or does: none of them ever goes below
fences all that it has
of what is fenced                                     never: the image has gone on without it
====================================================  ==================================================================

A pool file that is lost leaves what the discard of its layer does. What lies on top of a layer that holds a group, and
is between two groups itself, is discarded without that question: the level below it is whole, and loses nothing.

That a layer holds a group is coarser than it need be: one that lies under groups and never is clean always does. Which
of its generations are of a group that is not below as a whole, nobody knows; it is clean after a flush command.
"""

from collections.abc import Iterable

from fusecache.api.backend import ImageRecord
from fusecache.api.errors import LayerDirty
from fusecache.state.manifest import Manifest, ManifestLayer, decode


def heir(dirty: Iterable[int], index: int) -> int | None:
    """Return which layer holds a group when the layer *index* is torn, or holds one, no more; None is none.

    Args:
        dirty: the indexes of layers that are dirty.
    """
    return max((other for other in dirty if other < index), default=None)


def cleaned(manifest: Manifest, index: int) -> Manifest:
    """Return *manifest* with one layer marked clean, and with what that leaves to another."""
    target = next(layer for layer in manifest.layers if layer.index == index)
    holds = heir((layer.index for layer in manifest.layers if layer.dirty), index) if target.leaves_torn else None

    def after(layer: ManifestLayer) -> ManifestLayer:
        if layer is target:
            return layer.cleaned()
        return layer.model_copy(update={"holds_group": layer.holds_group or layer.index == holds})

    return manifest.model_copy(update={"layers": tuple(map(after, manifest.layers))})


def check_whole(layers: Iterable[ManifestLayer], dropped: int) -> None:
    """Refuse to give up *layers* where that leaves a level torn.

    Args:
        layers: bottom up.
        dropped: the index of the layer which the command is about.

    Raises:
        LayerDirty: one of them is torn or holds a group; the message is about the highest.
    """
    found = [layer for layer in layers if layer.leaves_torn]
    if found:
        raise refusal(found[-1].index, dropped, in_group=found[-1].torn)


def check_takeover(record: ImageRecord | None, host: str) -> None:
    """Refuse to take an image over where what another host has of it leaves a level torn.

    To be called before the backend breaks that host's lock, as it may be alive and in the middle of a group; and again
    when the lock is ours, as the record may have changed.

    Args:
        record: the image's.
        host: this host's machine-id.

    Raises:
        LayerDirty: see :func:`check_whole`.
        CorruptState: the record's copy of the manifest does not parse.
    """
    if record is None or record.holder in (None, host):
        return
    layers = decode(record.manifest.encode()).layers
    # Layers are discarded top first.
    check_whole(layers, max((layer.index for layer in layers if layer.dirty), default=0))


def refusal(index: int, dropped: int, *, in_group: bool) -> LayerDirty:
    """Return why the layer *dropped* is not discarded: the layer *index* is torn, as it is *in* a *group*, or it holds
    a group of a layer above it."""
    if in_group:
        found = "is in the middle of a group of writes: the level below has some of it"
        whole = "Once the group is written back it is whole again: let write-back come to rest, or"
    else:
        found = "holds writes that a layer above it made as one group: the level below may have some of it"
        whole = "Once all of the layer is written back it is whole again:"
    return LayerDirty(
        f"layer {index} {found}, and without the rest it is torn, as no disk is after loss of power, so that file "
        f"systems on it may be beyond repair. {whole} `fusecache flush CONFIG IMAGE`; "
        f"`fusecache discard CONFIG IMAGE --layer {dropped} --dirty --torn` gives the data up all the same"
    )
