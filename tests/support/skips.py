"""Which skips are allowed where a run must be complete.

Owns the format of ``tests/allowed_skips.txt``: one regular expression a line, matched against the whole reason; above
each, comment lines that say why such a skip is right. Pure, but for reading the file.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest


def load(path: Path) -> list[re.Pattern[str]]:
    """Return the patterns of *path*.

    Raises:
        ValueError: a pattern has no comment above it, or is no regular expression.
    """
    patterns = []
    explained = False
    for number, text in enumerate(path.read_text().splitlines(), 1):
        line = text.strip()
        if not line or line.startswith("#"):
            explained = bool(line)
            continue
        if not explained:
            raise ValueError(f"{path}:{number}: {line!r} has no comment above it that says why it is allowed")
        try:
            patterns.append(re.compile(line))
        except re.error as error:
            raise ValueError(f"{path}:{number}: {line!r} is no regular expression: {error}") from error
        explained = False
    return patterns


def refuse(report: pytest.TestReport | pytest.CollectReport, patterns: Sequence[re.Pattern[str]]) -> None:
    """Make *report* a failure where it is a skip whose whole reason none of *patterns* matches."""
    # An expected failure counts as skipped too; it is not a skip.
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = text.removeprefix("Skipped: ")
    if not any(pattern.fullmatch(reason) for pattern in patterns):
        report.outcome = "failed"
        report.longrepr = f"skipped, and tests/allowed_skips.txt does not allow it: {reason}"
