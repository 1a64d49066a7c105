"""A listing failed where its reader's buffer was large: what came back did not fit through the way to pyfuse3.

Newer kernels ask for as much as the reader has room for.
"""

import sys
from collections.abc import Callable

import pytest

from fusecache.fuse import channel
from fusecache.fuse.protocol import Opcode
from tests.support.callers import Caller
from tests.support.fake_kernel import serving, u
from tests.support.mounts import Mount, Place

IMAGES = 5000
USUAL_BUFFER = 212992
"""net.core.wmem_max of Linux, where nobody changed it; the kernel doubles what a program sets."""

LIST = """
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
buffer = ctypes.create_string_buffer(1 << 20)
view, names = memoryview(buffer).cast("B"), []
while (length := libc.getdents64(fd, buffer, len(buffer))) > 0:
    at = 0
    while at < length:
        size = int.from_bytes(view[at + 16 : at + 18], sys.byteorder)
        names.append(bytes(view[at + 19 : at + size]).split(b"\\0")[0].decode())
        at += size
say([os.strerror(ctypes.get_errno()) if length < 0 else "", names])
"""


def test_thousands_of_long_names_are_listed_with_a_large_buffer(place: Place, mounted: Callable[..., Mount]) -> None:
    expected = [f"{number:04}-".ljust(255, "n") for number in range(IMAGES)]
    for name in expected:
        place.image(name)
    mount = mounted()
    with Caller(LIST, mount.path) as caller:
        error, names = caller.answer()
    assert not error
    assert [name for name in names if not name.startswith(".")] == expected


async def test_as_much_as_is_asked_for_passes_a_socket_of_the_usual_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_RELAY_BUFFER", USUAL_BUFFER // 2)
    async with serving(monkeypatch) as served:
        unique = served.kernel.send(Opcode.READDIRPLUS, u(8, 1, 0) + u(4, 1 << 20, 0) + u(8, 0) + u(4, 0, 0))
        request = await served.names.receive()
        listing = bytes(int.from_bytes(request[56:60], sys.byteorder))
        served.names.answer(unique, listing)
        assert await served.kernel.reply() == (unique, 0, listing)
