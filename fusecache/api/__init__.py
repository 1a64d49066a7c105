"""The contract between the core, its backends and its layers.

Layer distributions import this package (and ``fusecache.testing`` in their tests) and nothing else of fusecache.
"""

from fusecache.api.backend import Backend, BackendImage, Claim, ImageInfo, ImageRecord
from fusecache.api.completions import Completions
from fusecache.api.errors import FusecacheError, errno_of
from fusecache.api.file_sync import FileSync
from fusecache.api.identity import Identity
from fusecache.api.inspection import Inspection
from fusecache.api.layer import (
    API_VERSION,
    DirtyMark,
    Emit,
    Layer,
    LayerContext,
    LayerPlugin,
    LayerState,
    LayerStatus,
)
from fusecache.api.ranges import Extent, ExtentKind, Span
from fusecache.api.volume import (
    DECLINED,
    DONE,
    PENDING,
    Attempt,
    Buffer,
    Buffers,
    Done,
    ReadDone,
    ReadOutcome,
    Volume,
    joined,
)

__all__ = [
    "API_VERSION",
    "DECLINED",
    "DONE",
    "PENDING",
    "Attempt",
    "Backend",
    "BackendImage",
    "Buffer",
    "Buffers",
    "Claim",
    "Completions",
    "DirtyMark",
    "Done",
    "Emit",
    "Extent",
    "ExtentKind",
    "FileSync",
    "FusecacheError",
    "Identity",
    "ImageInfo",
    "ImageRecord",
    "Inspection",
    "Layer",
    "LayerContext",
    "LayerPlugin",
    "LayerState",
    "LayerStatus",
    "ReadDone",
    "ReadOutcome",
    "Span",
    "Volume",
    "errno_of",
    "joined",
]
