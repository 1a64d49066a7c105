"""The durable state of one image on this host, held under the host's own lock.

Owns the manifest file and the record of clients, and what a crash leaves of them. It must not know what a manifest
means, nor how the lock is taken.

All functions block, for no longer than a few system calls; only those that write something durable wait for a device.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fusecache.api.errors import CorruptState
from fusecache.api.identity import Identity
from fusecache.state.files import replace_file, sync_directory, temporary_of
from fusecache.state.manifest import Manifest, decode, encode

log = logging.getLogger(__name__)


class ImageState:
    """The durable state of one image, held under its lock until :meth:`release`. Not for several threads at once.

    **Clients** are how the backend's lock names its owner. The file ``clients`` holds one in each line, in printable
    ASCII; it names every client of this host that may hold the backend's lock. So a client in it, found while the
    lock file is free, belongs to a process that is gone, and the next process may take what that client holds
    without waiting. With F the clients of former holders and C ours, a process killed after each step leaves:

    ====  =====================================  =============  ====================================================
    step                                         ``clients``    who may hold the backend's lock
    ====  =====================================  =============  ====================================================
    1     the lock file is locked                F              one of F, all gone, or none of this host
    2     ``clients`` names ours too; durable    F, C           the same
    3     the backend's lock is taken as C       F, C           C, gone now; or one of F
    4     ``clients`` names ours only; durable   C              C, gone now
    5     the backend's lock is given up         C              none of this host
    6     ``clients`` is removed                 none           none of this host
    7     the lock file is free                  none           none of this host
    ====  =====================================  =============  ====================================================

    An open that fails between 2 and 4 puts F back before it frees the lock file: C may live on, in use for other
    images. Loss of power ends all clients of the host and may undo step 6, which leaves a client that is gone.
    The lock file could not hold this itself: it cannot be replaced, and a crash may tear what is written in place.

    Attributes:
        identity: the image's.
        directory: the image's private directory.
        former: the clients of former holders, all of them gone.
    """

    def __init__(self, identity: Identity, directory: Path, fd: int, name: str) -> None:
        self.identity = identity
        self.directory = directory
        self.former: Sequence[str] = ()
        self._fd = fd
        self._name = name
        self._client = ""
        self._manifest = directory / "manifest"
        self._clients = directory / "clients"
        self._dirty = directory / "dirty"

    def __enter__(self) -> "ImageState":
        return self

    def __exit__(self, *failure: object) -> None:
        self.release()

    def note_client(self, client: str) -> None:
        """Note, durably, that *client* may hold the backend's lock from now on; steps 1 and 2.

        Args:
            client: printable ASCII without line breaks; empty where the backend's lock ends with its process.
        """
        self.former = tuple(former for former in self._read_clients() if former != client)
        # Known before it is written, so that a release after a failed write takes it back.
        self._client = client
        if client:
            self._write_clients([*self.former, client])

    def settle(self) -> None:
        """Forget former clients, durably: the backend's lock is ours, and none of them holds it; step 4."""
        if self.former:
            self._write_clients([self._client] if self._client else [])
            self.former = ()

    def release(self) -> None:
        """Give the lock up, once the backend's lock has been; steps 6 and 7. Later calls have no effect.

        Where our client cannot be taken from the record, the lock stays taken until the process ends.
        """
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            if self._client:
                self._write_clients(self.former)
        except OSError as error:
            log.error("image %r stays locked until this process ends: %s", self._name, error)
            return
        os.close(fd)

    def read_manifest(self) -> Manifest | None:
        """Return the manifest; None where there is none.

        Raises:
            CorruptState: it does not parse, or is another image's.
        """
        try:
            data = self._manifest.read_bytes()
        except FileNotFoundError:
            return None
        try:
            manifest = decode(data)
        except CorruptState as error:
            raise CorruptState(f"{self._manifest}: {error}") from error
        if manifest.identity != self.identity.text:
            raise CorruptState(f"{self._manifest}: found the identity {manifest.identity}, allowed: {self.identity}")
        return manifest

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest, atomically; it is durable when this returns.

        A crash leaves the old manifest, or the new one, whole: see :func:`replace_file`. After an error either may be
        there, and the new one may not be durable.
        """
        assert manifest.identity == self.identity.text, "a manifest is written for its own image only"
        replace_file(self._manifest, encode(manifest))
        # The directory itself may be as new as the file.
        sync_directory(self.directory.parent)

    def write_dirty_bytes(self, dirty: Mapping[int, int]) -> None:
        """Note how many bytes of each layer are dirty, by layer index; for people, as JSON in the file ``dirty``."""
        replace_file(self._dirty, json.dumps(dirty).encode())

    def forget_dirty_bytes(self) -> None:
        """Take that back; loss of power may undo it."""
        self._dirty.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Remove what a crash left of files that were being written."""
        for path in (self._manifest, self._clients, self._dirty):
            temporary_of(path).unlink(missing_ok=True)

    def _read_clients(self) -> Sequence[str]:
        try:
            lines = self._clients.read_text(encoding="ascii", errors="replace").splitlines()
        except FileNotFoundError:
            return ()
        # What is damaged is nobody's name, and proves nothing of anybody.
        return [line for line in lines if line and line.isascii() and line.isprintable()]

    def _write_clients(self, clients: Sequence[str]) -> None:
        if clients:
            replace_file(self._clients, "".join(f"{client}\n" for client in clients).encode("ascii"))
            sync_directory(self.directory.parent)
        else:
            self._clients.unlink(missing_ok=True)
