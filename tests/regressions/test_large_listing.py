"""A listing failed where its reader's buffer was large: what came back did not fit through the way to pyfuse3.

Newer kernels ask for as much as the reader has room for.
"""

from collections.abc import Callable

from tests.support.callers import Caller
from tests.support.mounts import Mount, Place

IMAGES = 5000

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
