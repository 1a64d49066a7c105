"""Sizes, durations and rates are read as people write them, and nothing else is."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusecache.api.units import (
    DURATION_HELP,
    RATE_HELP,
    SIZE_HELP,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
    readable_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1B", 1),
        ("64KiB", 64 << 10),
        ("256MiB", 256 << 20),
        ("20GiB", 20 << 30),
        ("3 TiB", 3 << 40),
        ("1PiB", 1 << 50),
        ("1.5KiB", 1536),
        ("1kB", 1000),
        ("1KB", 1000),
        ("2MB", 2_000_000),
        ("0.5GB", 500_000_000),
        ("10000000000000001", 10_000_000_000_000_001),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    "|".join(
        ("| |1 | 1|-1|+1|1e3|1_000|0x10|1.5|0.3KiB|1.|.5KiB|1kib|1 KiB |KiB", "1  KiB|1KiB\n|١|1Ki|1K|inf|nan|max")
    ).split("|"),
)
def test_what_is_no_size_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: ") as refused:
        parse_size(text)
    assert str(refused.value) == f"found {text!r}, allowed: {SIZE_HELP}"


@given(st.integers(0, 1 << 70))
def test_a_size_that_was_written_is_read_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(count=st.integers(1, 1023), power=st.integers(0, 5))
def test_sizes_are_written_with_the_largest_unit_that_loses_nothing(count: int, power: int) -> None:
    unit = ("", "KiB", "MiB", "GiB", "TiB", "PiB")[power]
    assert format_size(count << 10 * power) == f"{count}{unit}"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1000, "1000B"),
        (1024, "1KiB"),
        (1025, "1.0KiB"),
        (266115584, "253.8MiB"),
        (211161 << 10, "206.2MiB"),
        (64 << 20, "64MiB"),
        ((1 << 20) - 1, "1.0MiB"),
        (3 << 29, "1.5GiB"),
        (5000 << 50, "5000PiB"),
    ],
)
def test_sizes_for_people_are_short(size: int, text: str) -> None:
    assert readable_size(size) == text


@given(st.integers(1024, 1023 << 50))
def test_sizes_for_people_are_right_to_one_place(size: int) -> None:
    text = readable_size(size)
    number = float(text[:-3])
    assert number < 1024
    scale = 1 << 10 * (1 + "KMGTP".index(text[-3]))
    assert abs(number * scale - size) <= 0.0501 * scale


@given(st.one_of(st.none(), st.integers(0, 1 << 70)))
def test_a_rate_that_was_written_is_read_back(rate: int | None) -> None:
    assert parse_rate(format_rate(rate)) == rate


@pytest.mark.parametrize(("text", "rate"), [("0", 0), ("max", None), ("50MiB", 50 << 20)])
def test_rates_are_read(text: str, rate: int | None) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "MAX", "50MiB/s", "-1", "maximum", "1.5"])
def test_what_is_no_rate_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: ") as refused:
        parse_rate(text)
    assert str(refused.value) == f"found {text!r}, allowed: {RATE_HELP}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("0s", 0), ("50us", 50e-6), ("5ms", 5e-3), ("5s", 5), ("2min", 120), ("1.5 h", 5400), ("1d", 86400)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "5 ", "-5s", "5S", "5sec", "1h30min", "never", "inf", "0.0"])
def test_what_is_no_duration_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: ") as refused:
        parse_duration(text)
    assert str(refused.value) == f"found {text!r}, allowed: {DURATION_HELP}"


@given(text=st.text(max_size=8), parse=st.sampled_from([parse_size, parse_rate, parse_duration]))
def test_any_other_text_is_refused_and_nothing_else_happens(text: str, parse: Callable[[str], object]) -> None:
    try:
        value = parse(text)
    except ValueError as error:
        value = str(error)
    assert value is None or (isinstance(value, int | float) and value >= 0) or repr(text) in str(value)
