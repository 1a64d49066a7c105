"""The retained events."""

import logging
import re
import threading

import pytest

from fusecache.metrics.events import EventLog, timestamp
from fusecache.metrics.text import printable


def test_an_event_is_a_line_of_time_kind_and_text() -> None:
    events = EventLog()
    events.emit("mounted", "directory:/images at /mnt")
    (line,) = events.lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ mounted directory:/images at /mnt", line)


def test_times_are_utc() -> None:
    assert timestamp(1795372391.9) == "2026-11-22T18:33:11Z"


@pytest.mark.parametrize("text", ["two\nlines", "tab\t", "\x1b[31mred", "\u2028", "bad\udc80", "\r\n"])
def test_an_event_stays_on_its_line_and_can_be_encoded(text: str) -> None:
    events = EventLog()
    events.emit("odd", text)
    (line,) = events.lines()
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert line.encode()


def test_printable_text_is_left_alone() -> None:
    for text in ("", "größe 10 %", r"C:\new"):
        assert printable(text) == text


def test_the_latest_events_are_kept_oldest_first() -> None:
    events = EventLog(retained=3)
    for number in range(5):
        events.emit("count", str(number))
    assert [line.split()[-1] for line in events.lines()] == ["2", "3", "4"]


def test_events_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fusecache.metrics.events"):
        EventLog().emit("mounted", "here")
    assert "mounted: here" in caplog.text


def test_events_from_many_threads_are_all_kept_in_the_order_of_their_times() -> None:
    events = EventLog(retained=4000)

    def emit() -> None:
        for number in range(500):
            events.emit("count", str(number))
            events.lines()

    threads = [threading.Thread(target=emit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = [line.split()[0] for line in events.lines()]
    assert len(times) == 2000
    assert times == sorted(times)
