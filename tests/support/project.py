"""The project's own files, for tests about the project itself.

Owns where they are and which belong to it. It must not know what is demanded of them.
"""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

FOLDERS = (".ci", "bench", "etc", "fusecache", "layers", "scripts", "tests")
IGNORED = {"__pycache__", "build", "dist", ".pytest_cache", ".hypothesis", ".mypy_cache", ".ruff_cache"}
MADE = (".egg-info", ".so")


def files() -> Iterator[Path]:
    """Yield every file of the project, without what tools leave between them."""
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.name != ".git")
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            parts = path.relative_to(ROOT).parts
            if path.is_file() and IGNORED.isdisjoint(parts) and not any(part.endswith(MADE) for part in parts):
                yield path


def python_files(*folders: str) -> Iterator[Path]:
    """Yield the Python files below *folders* of the checkout; of all of it where none is named."""
    for path in files():
        inside = not folders or any(path.is_relative_to(ROOT / folder) for folder in folders)
        if inside and (path.suffix == ".py" or (is_script(path) and "python" in first_line(path))):
            yield path


def is_script(path: Path) -> bool:
    """Say whether *path* is meant to be run: it begins with ``#!``."""
    return first_line(path).startswith("#!")


def first_line(path: Path) -> str:
    """Return the first line of *path*."""
    with path.open(errors="replace") as file:
        return file.readline()


def name_of(path: Path) -> str:
    """Return *path* as it is written from the checkout's root."""
    return str(path.relative_to(ROOT))
