"""Where images live: one module for each type of backend, imported only when it is configured."""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from fusecache.api import Backend, Completions, Emit
from fusecache.api.errors import NotSupported

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from fusecache.config.schema import DirectoryConfig

__all__ = ["open_backend"]

_MODULES: Final = {"directory": "fusecache.backends.directory"}


def open_backend(
    config: "DirectoryConfig", completions: Completions, emit: Emit
) -> "AbstractAsyncContextManager[Backend]":
    """Return the context manager that opens the backend of *config*; leaving it closes the backend.

    Args:
        config: the table ``[backend]`` of the config; its ``type`` says which module opens it.
        completions: brings results of the backend's threads to the loop; is run as long as the backend is open.
        emit: records events; called on the loop's thread only.

    Raises:
        NotSupported: there is no backend of that type.
        OSError: on entering: the place cannot be opened.
    """
    if config.type not in _MODULES:
        raise NotSupported(f"found backend type {config.type!r}, allowed: {', '.join(_MODULES)}")
    opened: AbstractAsyncContextManager[Backend] = import_module(_MODULES[config.type]).open_backend(
        config, completions, emit
    )
    return opened
