"""How much a Hypothesis test does.

Owns the settings of short runs and of soak runs. It must not know any test.
"""

import os
from typing import Final

import hypothesis

_SOAK: Final = float(os.environ.get("FUSECACHE_SOAK_SECONDS", "0")) > 0


def effort(examples: int) -> hypothesis.settings:
    """Return the settings of a test: *examples* runs, the same every time; in a soak run new ones, seed after seed."""
    return hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=not _SOAK,
        database=None,
        print_blob=True,
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
    )
