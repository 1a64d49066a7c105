"""Mounts for the tests of this folder."""

from tests.fuse.conftest import mounted, place

__all__ = ["mounted", "place"]
