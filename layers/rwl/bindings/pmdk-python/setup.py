"""Decides whether the compiled module is built; all else stands in ``pyproject.toml``.

Owns the build variable ``FUSECACHE_WITH_PMEM``: ``on`` fails the build where the module cannot be compiled, ``off``
leaves it out, ``auto`` (the default) leaves it out where it cannot be compiled.
"""

import os

from setuptools import setup

WANTED = os.environ.get("FUSECACHE_WITH_PMEM", "auto")
if WANTED not in ("on", "off", "auto"):
    raise SystemExit(f"FUSECACHE_WITH_PMEM: found {WANTED!r}, allowed: on, off, auto")

if WANTED == "off":
    setup()
else:
    # One wheel for this Python and all later ones: cffi compiles against the stable ABI.
    setup(
        cffi_modules=[f"build_libpmem.py:{'required' if WANTED == 'on' else 'optional'}"],
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
