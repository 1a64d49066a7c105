"""What a log's failures are called.

Owns the errors that this layer raises of its own. It must not know who raises them.
"""

from fusecache.api import FusecacheError


class LogFailed(FusecacheError):
    """The pool's medium failed, and what was acknowledged may not survive (EIO)."""


class LogFull(FusecacheError):
    """The log is full, or its medium failed, and nothing could be written back for ``stall_timeout``
    (``stall_errno``)."""


class RecordDamaged(FusecacheError):
    """A dirty record is not what was written (EIO); the message names it."""
