"""On older kernels a reader went on seeing old pages of an image that another opener wrote with O_DIRECT.

Only with ``FUSE_DIRECT_IO_ALLOW_MMAP`` does the kernel drop the pages that others have beside direct writes. Control
files have no pages, and need every read to reach them.
"""

import pytest

from fusecache.fuse.protocol import Opcode
from tests.support.fake_kernel import Served, serving, u
from tests.support.nodes import ScriptedFile

DIRECT_IO, KEEP_CACHE, PARALLEL = 1, 2, 64
INIT_EXT, ALLOW_MMAP = 1 << 30, 1 << 36 - 32
OLD, NEW = (0x3FFFFFFF, 0), (0x3FFFFFFF | INIT_EXT, ALLOW_MMAP)


async def agree(served: Served, flags: tuple[int, int]) -> None:
    """Begin as a kernel that offers *flags*."""
    unique = served.kernel.send(Opcode.INIT, u(4, 7, 45, 131072, *flags) + bytes(44))
    await served.names.receive()
    served.names.answer(unique, u(4, 7, 38, 65536, 0) + u(2, 0, 0) + u(4, 131072, 1) + u(2, 32, 0) + bytes(32))
    assert (await served.kernel.reply()).error == 0


@pytest.mark.parametrize(
    ("kernel", "image", "flags", "expected"),
    [
        (OLD, True, DIRECT_IO, 0),
        (OLD, True, KEEP_CACHE, KEEP_CACHE),
        (OLD, False, DIRECT_IO, DIRECT_IO | PARALLEL),
        (NEW, True, DIRECT_IO, DIRECT_IO | PARALLEL),
        (NEW, True, KEEP_CACHE, KEEP_CACHE),
        (NEW, False, DIRECT_IO, DIRECT_IO | PARALLEL),
    ],
)
@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.CREATE])
async def test_only_kernels_that_keep_the_pages_of_others_true_open_images_directly(
    monkeypatch: pytest.MonkeyPatch,
    kernel: tuple[int, int],
    image: bool,
    flags: int,
    expected: int,
    opcode: Opcode,
) -> None:
    async with serving(monkeypatch) as served:
        await agree(served, kernel)
        file = ScriptedFile()
        file.parallel = image
        handle = served.open(file)
        front = bytes(128) if opcode is Opcode.CREATE else b""
        unique = served.kernel.send(opcode, u(4, 2, 0))
        await served.names.receive()
        served.names.answer(unique, front + u(8, handle) + u(4, flags, 0))
        assert (await served.kernel.reply()).body == front + u(8, handle) + u(4, expected, 0)
