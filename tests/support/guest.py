"""A virtual machine whose guest writes to a disk, and the socket over which it is watched and told to go on.

Owns qemu and what it runs: a boot sector that needs no operating system. It must not know what the disk is.

**The guest** writes its second disk from the beginning, 64 sectors at a time, one request after the other, through the
BIOS; then it ends the machine. Each sector begins with its number plus one as four bytes, little-endian; the rest is
zero. A request that fails ends the machine too.
"""

import json
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.mounts import PATIENCE

SECTOR: Final = 512
REQUEST: Final = 64 * SECTOR
"""Bytes of each of the guest's requests."""

_QEMU: Final = "qemu-system-x86_64"
_BOOT_DISK: Final = 1 << 20
"""Bytes of the first disk: the BIOS boots from none that is smaller than a cylinder."""

# What the device isa-debug-exit makes of the bytes 0 and 1.
_WROTE_ALL: Final = 1
_FAILED: Final = 3

_PROGRAM: Final = bytes.fromhex(
    "31c0 8ed8 8ed0"  #          xor ax, ax; mov ds, ax; mov ss, ax
    "bc007c"  #                  mov sp, 0x7c00
    "b80010 8ec0"  #             mov ax, 0x1000; mov es, ax
    "66a1547c"  #          next: mov eax, [sector]
    "31ff"  #                    xor di, di
    "6640"  #             stamp: inc eax
    "26668905"  #                mov [es:di], eax
    "81c70002 81ff0080 75f0"  #  add di, 512; cmp di, 32768; jne stamp
    "be4c7c b80043 b281 cd13"  # mov si, packet; mov ax, 0x4300; mov dl, 0x81; int 0x13 (extended write)
    "7215"  #                    jc failed
    "668306547c40 66a1547c"  #   add dword [sector], 64; mov eax, [sector]
    "663b065c7c 72cd"  #         cmp eax, [end]; jb next
    "b000 eb02"  #               mov al, 0; jmp tell
    "b001"  #            failed: mov al, 1
    "e6f4"  #              tell: out 0xf4, al (isa-debug-exit)
    "f4 ebfd"  #           halt: hlt; jmp halt
    "1000 4000 0000 0010"  # packet: its length, 64 sectors, at 0x1000:0
    "0000000000000000"  # sector: the next one, then, outside of this, the end
)


def _boot_sector(length: int) -> bytes:
    """Return the program that writes *length* bytes."""
    program = _PROGRAM + struct.pack("<I", length // SECTOR)
    return program.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


def written_by_guest(content: bytes) -> bool:
    """Say whether *content* is what the guest writes from the beginning of its disk."""
    return all(
        content[at : at + SECTOR] == struct.pack("<I", at // SECTOR + 1).ljust(SECTOR, b"\0")
        for at in range(0, len(content), SECTOR)
    )


class Guest:
    """A running machine, watched over its QMP socket.

    Attributes:
        events: those that came so far and nobody waited for, each as QMP gives it.
    """

    def __init__(self, process: subprocess.Popen[bytes], qmp: socket.socket) -> None:
        self._process = process
        self._lines = qmp.makefile("rw", encoding="utf-8")
        self.events: list[Mapping[str, Any]] = []
        assert "QMP" in self._receive()
        self.command("qmp_capabilities")

    def _receive(self) -> Mapping[str, Any]:
        line = self._lines.readline()
        assert line, f"qemu ended with {self._process.wait(PATIENCE)}"
        message: Mapping[str, Any] = json.loads(line)
        return message

    def command(self, name: str) -> Any:
        """Execute a QMP command without arguments and return what it returns."""
        self._lines.write(json.dumps({"execute": name}) + "\n")
        self._lines.flush()
        while "return" not in (message := self._receive()):
            assert "error" not in message, message
            self.events.append(message)
        return message["return"]

    def wait_for(self, name: str) -> Mapping[str, Any]:
        """Wait for an event of that name and return its data; those before it are forgotten."""
        while True:
            event = self.events.pop(0) if self.events else self._receive()
            if event.get("event") == name:
                data: Mapping[str, Any] = event.get("data", {})
                return data

    def wrote_all(self) -> bool:
        """Wait for the end, and say whether every request succeeded."""
        status = self._process.wait(PATIENCE)
        assert status in (_WROTE_ALL, _FAILED), f"qemu ended with {status}"
        return status == _WROTE_ALL


@contextmanager
def guest_writing(disk: Path, length: int, place: Path, *, cache: str = "none") -> Iterator[Guest]:
    """Make a machine that writes the first *length* bytes of *disk*, and pauses where a request finds no space.

    It begins with the command ``cont``.

    Args:
        length: a multiple of REQUEST.
        place: an empty directory for what the machine needs.
        cache: qemu's cache mode.
    """
    if shutil.which(_QEMU) is None:
        pytest.skip("qemu-system-x86 is not installed")
    boot, path = place / "boot", place / "qmp"
    boot.write_bytes(_boot_sector(length).ljust(_BOOT_DISK, b"\0"))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(PATIENCE)
        process = subprocess.Popen(_command(boot, disk, path, cache), stdin=subprocess.DEVNULL)
        try:
            qmp, _ = listening.accept()
            qmp.settimeout(PATIENCE)
            with qmp:
                yield Guest(process, qmp)
        finally:
            process.kill()
            process.wait()


def _command(boot: Path, disk: Path, qmp: Path, cache: str) -> list[str]:
    # Not by KVM: emulated, the guest runs on every machine.
    return [
        *(_QEMU, "-accel", "tcg", "-m", "16", "-display", "none", "-nodefaults", "-no-reboot", "-S"),
        *("-drive", f"if=none,id=boot,format=raw,readonly=on,file={boot}"),
        *("-drive", f"if=none,id=data,format=raw,cache={cache},werror=enospc,rerror=report,file={disk}"),
        *("-device", "virtio-blk-pci,drive=boot,bootindex=0", "-device", "virtio-blk-pci,drive=data,bootindex=1"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-qmp", f"unix:{qmp}"),
    ]
