"""A thread that was left behind wrote its wake-up into whatever had got the number of the closed descriptor."""

import os

import pytest

from fusecache.api import Completions


def test_a_result_that_comes_after_the_end_touches_no_other_descriptor() -> None:
    completions = Completions()
    number = completions.signal_fd
    completions.close()
    other = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        # The lowest free number is given out first; the other one is that of the epoll descriptor.
        if other != number:
            other, spare = os.dup2(other, number), other
            os.close(spare)
        completions.post(lambda: None)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(other)
    finally:
        os.close(other)
