"""Idle CPUs are kept awake while there is work, on machines where that pays, and no longer."""

import time
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from fusecache.fuse import awake
from fusecache.fuse.awake import SHARE, WINDOW, Awake


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the device's place, which takes everything."""
    path = tmp_path / "cpu_dma_latency"
    path.touch()
    monkeypatch.setattr(awake, "DEVICE", path)
    return path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> MockClock:
    """The clock of the loop, which also tells how long work took."""
    monkeypatch.setattr(time, "monotonic", trio.current_time)
    return autojump_clock


def holders(device: Path) -> int:
    """Count this process's descriptors of the device."""
    links = [Path(f"/proc/self/fd/{fd}") for fd in range(1024)]
    return sum(link.is_symlink() and link.readlink() == device for link in links)


def asked(device: Path) -> bytes:
    """Return what the device was told."""
    return device.read_bytes()


async def work(cpus: Awake, share: float, windows: int) -> None:
    """Be at work for a part of each of so many windows."""
    for _ in range(windows):
        with cpus.working():
            await trio.sleep(share * WINDOW)
        await trio.sleep((1 - share) * WINDOW)


@pytest.mark.usefixtures("clock")
async def test_idle_cpus_are_kept_awake_while_there_is_work(device: Path, nursery: trio.Nursery) -> None:
    cpus = Awake(allowed=True)
    nursery.start_soon(cpus.run)
    assert not cpus.held
    with cpus.working():
        await trio.sleep(2.5 * WINDOW)
        assert cpus.held
        assert holders(device) == 1
        assert asked(device) == bytes(4)
    await trio.sleep(2 * WINDOW)
    assert not cpus.held
    assert holders(device) == 0


@pytest.mark.usefixtures("clock", "device")
@pytest.mark.parametrize(("share", "kept"), [(SHARE + 0.1, True), (SHARE - 0.1, False)])
async def test_what_counts_is_the_share_of_time_with_work(nursery: trio.Nursery, share: float, kept: bool) -> None:
    cpus = Awake(allowed=True)
    nursery.start_soon(cpus.run)
    await work(cpus, share, 10)
    assert cpus.held == kept


@pytest.mark.usefixtures("clock", "device")
async def test_who_rests_is_not_at_work(nursery: trio.Nursery) -> None:
    cpus = Awake(allowed=True)
    nursery.start_soon(cpus.run)
    with cpus.working():
        await trio.sleep(2.5 * WINDOW)
        with cpus.resting():
            await trio.sleep(2.5 * WINDOW)
            assert not cpus.held
        await trio.sleep(2.5 * WINDOW)
        assert cpus.held


@pytest.mark.usefixtures("clock", "device")
async def test_as_long_as_one_of_several_is_at_work_there_is_work(nursery: trio.Nursery) -> None:
    cpus = Awake(allowed=True)
    nursery.start_soon(cpus.run)
    with cpus.working():
        nursery.start_soon(work, cpus, 0.5, 10)
        await trio.sleep(2.5 * WINDOW)
        with cpus.resting():
            await trio.sleep(2.5 * WINDOW)
            assert cpus.held


@pytest.mark.usefixtures("clock")
async def test_the_end_lets_idle_cpus_sleep(device: Path) -> None:
    cpus = Awake(allowed=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cpus.run)
        with cpus.working():
            await trio.sleep(2.5 * WINDOW)
        assert cpus.held
        nursery.cancel_scope.cancel()
    assert holders(device) == 0


@pytest.mark.usefixtures("clock")
async def test_nothing_is_asked_for_where_it_is_not_allowed(device: Path, nursery: trio.Nursery) -> None:
    cpus = Awake(allowed=False)
    nursery.start_soon(cpus.run)
    with cpus.working():
        await trio.sleep(2.5 * WINDOW)
    assert asked(device) == b""


@pytest.mark.usefixtures("clock")
async def test_without_the_right_to_ask_all_goes_on(
    tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awake, "DEVICE", tmp_path / "none")
    caplog.set_level("INFO")
    cpus = Awake(allowed=True)
    nursery.start_soon(cpus.run)
    await work(cpus, 1.0, 5)
    assert not cpus.held
    assert caplog.text.count("idle CPUs are not kept awake") == 1


@pytest.mark.parametrize(("driver", "pays"), [("haltpoll\n", True), ("intel_idle\n", False), (None, False)])
def test_it_pays_where_an_idle_cpu_is_given_to_a_hypervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str | None, pays: bool
) -> None:
    path = tmp_path / "current_driver"
    if driver is not None:
        path.write_text(driver)
    monkeypatch.setattr(awake, "_DRIVER", path)
    assert awake.pays() == pays
