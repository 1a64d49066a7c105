"""Where images live: one module for each type of backend, imported only when it is configured."""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from fusecache.api import Backend, Completions, Emit
from fusecache.api.errors import NotSupported

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from fusecache.config.schema import BackendConfig

__all__ = ["open_backend"]

_MODULES: Final = {"directory": "fusecache.backends.directory", "rbd": "fusecache.backends.rbd.backend"}

_BINDINGS: Final = {"rados": "python3-rados", "rbd": "python3-rbd"}
"""Modules that pip does not install, and the Debian packages that do."""


def open_backend(
    config: "BackendConfig", completions: Completions, emit: Emit
) -> "AbstractAsyncContextManager[Backend]":
    """Return the context manager that opens the backend of *config*; leaving it closes the backend.

    Args:
        config: the table ``[backend]`` of the config; its ``type`` says which module opens it.
        completions: brings results of the backend's threads to the loop; is run as long as the backend is open.
        emit: records events; called on the loop's thread only.

    Raises:
        NotSupported: there is no backend of that type, or not on this machine.
        FusecacheError, OSError: on entering: the place cannot be opened.
    """
    if config.type not in _MODULES:
        raise NotSupported(f"found backend type {config.type!r}, allowed: {', '.join(_MODULES)}")
    try:
        module = import_module(_MODULES[config.type])
    except ModuleNotFoundError as error:
        if error.name not in _BINDINGS:
            raise
        raise NotSupported(
            f"found no Python module {error.name!r}, which the backend type {config.type!r} needs; it is in the Debian "
            f"package {_BINDINGS[error.name]}: `apt-get install {' '.join(_BINDINGS.values())}`, then `scripts/setup`"
        ) from error
    opened: AbstractAsyncContextManager[Backend] = module.open_backend(config, completions, emit)
    return opened
