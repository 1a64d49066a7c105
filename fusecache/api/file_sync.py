"""Making files durable without waiting for it, and without a thread of one's own.

Owns the contract between the core, which does it, and layers, whose files they are. It must not know how it is done.
"""

from typing import Protocol

from fusecache.api.volume import Done


class FileSync(Protocol):
    """Makes files durable. One for all layers of a process; the core's uses the kernel's own threads where it can.

    Loop's thread only. Nothing here groups or remembers: an owner that has many waiting has one call made for all.
    """

    def fdatasync(self, fd: int, done: Done) -> None:
        """Have everything that has reached the file behind *fd* made durable, as ``fdatasync(2)`` does.

        What had reached the kernel when this was called is covered; of what comes later, any part. Any number may be
        under way at once, of one file too, and they end in any order; where more files than some tens hang in the
        kernel at once, others may have to wait for them.

        Args:
            fd: open until ``done`` is called.
            done: called once, later, on the loop's thread, never from inside this call. With None everything covered
                is durable. With an OSError any part of it may be lost for good: the kernel drops what it could not
                write and tells once, so that a success of another call which was under way with it, or came later,
                says nothing about it. So who needs to know has one call under way for each file.

        It cannot be taken back. A close, or a cancelled task, waits for ``done``, or leaves the file open behind it:
        where the kernel hangs, ``done`` is called late, or never. What a crash leaves is what it leaves of
        ``fdatasync(2)``: before ``done(None)``, any part of what was covered.
        """
