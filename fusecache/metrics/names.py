"""The names, labels and meanings of all metrics, in one place.

Owns what dashboards and alerts are written against; a name never changes its meaning. Pure.
"""

from typing import Final, NamedTuple

PREFIX: Final = "fusecache_"


class Metric(NamedTuple):
    """One metric. A counter's name is shown with ``_total`` at its end."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


_HOP: Final = ("image", "layer", "plugin")

BACKEND_LAYER: Final = "backend"
"""The label ``layer`` of the hop into the backend; of all others it is the layer index."""

BUILD: Final = Metric(f"{PREFIX}build", "What is running.", ("version", "backend"))
OPEN_IMAGES: Final = Metric(f"{PREFIX}open_images", "Images whose stack is open.")
RUNNING_COMMANDS: Final = Metric(f"{PREFIX}running_commands", "Control commands under way.")
SLOTS_IN_USE: Final = Metric(
    f"{PREFIX}request_slots_in_use",
    "FUSE requests read from the kernel whose memory is still in use, nearly all of them unanswered.",
)

REQUESTS: Final = Metric(f"{PREFIX}requests", "Requests that ended, failed ones included.", (*_HOP, "operation"))
BYTES: Final = Metric(f"{PREFIX}request_bytes", "Bytes of requests that succeeded.", (*_HOP, "operation"))
ERRORS: Final = Metric(f"{PREFIX}request_errors", "Requests that failed.", (*_HOP, "operation"))
IN_FLIGHT: Final = Metric(f"{PREFIX}requests_in_flight", "Requests that have not ended.", _HOP)
DURATION: Final = Metric(
    f"{PREFIX}request_duration_seconds",
    "How long requests took, all hops below included. The sum is estimated from the buckets.",
    (*_HOP, "operation"),
)

STATE: Final = Metric(f"{PREFIX}layer_state", "1 for the state the layer is in.", (*_HOP, "state"))
DIRTY: Final = Metric(f"{PREFIX}layer_dirty_bytes", "Bytes not yet durable in the level below.", _HOP)
USED: Final = Metric(f"{PREFIX}layer_used_bytes", "Bytes taken in the pool file.", _HOP)
SIZE: Final = Metric(f"{PREFIX}layer_size_bytes", "Bytes in the pool file.", _HOP)
OLDEST_DIRTY: Final = Metric(
    f"{PREFIX}layer_oldest_dirty_seconds", "Age of the oldest dirty data; absent while clean.", _HOP
)
HITS: Final = Metric(f"{PREFIX}layer_hits", "Reads answered by the layer.", _HOP)
MISSES: Final = Metric(f"{PREFIX}layer_misses", "Reads answered by the level below.", _HOP)
WRITEBACK: Final = Metric(f"{PREFIX}layer_writeback_bytes", "Bytes written back to the level below.", _HOP)
LAYER_ERRORS: Final = Metric(f"{PREFIX}layer_errors", "Errors the layer counted itself, write-back's among them.", _HOP)
