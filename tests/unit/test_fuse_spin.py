"""Spinning: bounded, soon given up where it finds nothing, taken up again where it pays."""

import pytest

from fusecache.fuse.spin import Spin


def sleeps_until_next(spin: Spin) -> int:
    """Count how often to sleep without a spin before the next."""
    count = 0
    while not spin.allowed():
        count += 1
    return count


def test_a_single_cpu_never_spins() -> None:
    spin = Spin(50e-6, cpus=1)
    assert spin.seconds == 0
    assert not any(spin.allowed() for _ in range(1000))


def test_spinning_can_be_switched_off() -> None:
    assert not Spin(0.0, cpus=8).allowed()


def test_a_spin_lasts_as_long_as_configured() -> None:
    spin = Spin(50e-6, cpus=2)
    assert (spin.seconds, spin.nanoseconds) == (50e-6, 50_000)


def test_each_spin_in_vain_doubles_the_sleeps_without_one_up_to_a_limit() -> None:
    spin = Spin(50e-6, cpus=2)
    waits = []
    for _ in range(11):
        waits.append(sleeps_until_next(spin))
        spin.missed()
    assert waits == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 256]


@pytest.mark.parametrize("misses", [1, 5, 20])
def test_a_spin_that_finds_something_starts_over(misses: int) -> None:
    spin = Spin(50e-6, cpus=2)
    for _ in range(misses):
        spin.missed()
        sleeps_until_next(spin)
    spin.hit()
    assert all(spin.allowed() for _ in range(10))
    spin.missed()
    assert sleeps_until_next(spin) == 1


def test_the_cpus_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3})
    assert Spin(50e-6).seconds == 0
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {1, 3})
    assert Spin(50e-6).seconds == 50e-6
