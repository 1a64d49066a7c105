"""Who may open an image of a cluster: one living owner, and at once after an owner that is gone for certain."""

import errno
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest
import trio

from fusecache.api import ImageRecord
from fusecache.api.errors import CorruptState, FusecacheError, ImageBusy, ImageNotFound, NotSupported, VolumeReadOnly
from fusecache.testing import FreeClaim
from tests.support.ceph import Cluster

rbd = pytest.importorskip("rbd")

from fusecache.backends.rbd import ownership  # noqa: E402 - needs the bindings
from fusecache.backends.rbd.client import Client  # noqa: E402
from fusecache.backends.rbd.lookup import fetch_header  # noqa: E402
from fusecache.backends.rbd.opening import open_handle  # noqa: E402
from fusecache.backends.rbd.ownership import guard_lifted  # noqa: E402
from fusecache.backends.rbd.records import LIFTED, RbdRecords, change_guard, decoded_record, guard_for  # noqa: E402
from tests.support.rbd_owners import connected, identity_of, owned  # noqa: E402

HERE, ELSEWHERE = "a" * 32, "b" * 32
DIRTY = ImageRecord(epoch=1, holder=HERE, holder_name="here", manifest="höst\n")
GUARD = guard_for("here")


@pytest.fixture
async def client(ceph_cluster: Cluster) -> AsyncIterator[Client]:
    async with connected(ceph_cluster.conf) as client:
        yield client


@pytest.fixture
async def other(ceph_cluster: Cluster) -> AsyncIterator[Client]:
    """A second client, as of another host."""
    async with connected(ceph_cluster.conf) as client:
        yield client


@pytest.fixture
def image(ceph_cluster: Cluster, image_name: str) -> str:
    ceph_cluster.rbd("create", "--size", "8M", image_name)
    return image_name


async def opened_by_stranger(cluster: Cluster, image: str) -> subprocess.CompletedProcess[str]:
    """Let a program open the image that knows nothing of us."""
    return await trio.to_thread.run_sync(cluster.attempt, "rbd", "info", image)


async def guard_of(client: Client, image: str) -> str | None:
    return (await fetch_header(client, image)).guard


async def test_a_living_owner_keeps_its_lock_and_is_named(client: Client, other: Client, image: str) -> None:
    async with owned(client, image, FreeClaim()) as own:
        with pytest.raises(ImageBusy, match=rf"image rbd/{image} is locked by the client {client.address}"):
            async with owned(other, image, FreeClaim()):
                raise AssertionError("the image is open")
        await trio.to_thread.run_sync(own.handle.image.write, b"data", 0)
    async with owned(other, image, FreeClaim()) as own:
        assert await trio.to_thread.run_sync(own.handle.image.read, 0, 4) == b"data"
    assert not client.lost


async def test_the_command_that_is_told_shows_a_living_owner_also_behind_the_guard(
    ceph_cluster: Cluster, client: Client, other: Client, image: str
) -> None:
    async with owned(client, image, FreeClaim(HERE)) as own:
        await own.records.write(DIRTY, guard=True)
        with pytest.raises(ImageBusy, match="`rados -p rbd listwatchers rbd_header") as caught:
            async with owned(other, image, FreeClaim(HERE)):
                raise AssertionError("the image is open")
        command = str(caught.value).split("`")[1].split()
        assert client.address in await trio.to_thread.run_sync(ceph_cluster.run, *command)
        assert (await opened_by_stranger(ceph_cluster, image)).returncode == errno.ENOSYS


async def test_an_owner_that_would_hand_its_lock_over_keeps_it(client: Client, other: Client, image: str) -> None:
    def write_as_a_machine_does() -> Any:
        machine = rbd.Image(other.ioctx, image)
        machine.write(b"one", 0)
        return machine

    machine = await trio.to_thread.run_sync(write_as_a_machine_does)
    try:
        with pytest.raises(ImageBusy, match=other.address):
            async with owned(client, image, FreeClaim()):
                raise AssertionError("the image is open")
        await trio.to_thread.run_sync(machine.write, b"two", 0)
    finally:
        await trio.to_thread.run_sync(machine.close)
    async with owned(client, image, FreeClaim()) as own:
        assert await trio.to_thread.run_sync(own.handle.image.read, 0, 3) == b"two"


async def test_others_cannot_write_while_it_is_owned(client: Client, other: Client, image: str) -> None:
    def write() -> None:
        with rbd.Image(other.ioctx, image) as stranger:
            stranger.write(b"strange", 0)

    async with owned(client, image, FreeClaim()):
        with pytest.raises(rbd.ReadOnlyImage):
            await trio.to_thread.run_sync(write)
    await trio.to_thread.run_sync(write)


async def test_the_claim_comes_before_anything_shows(client: Client, image: str) -> None:
    claim = FreeClaim(refusal=ImageBusy("another process of this host has it"))
    with pytest.raises(ImageBusy, match="another process of this host"):
        async with owned(client, image, claim):
            raise AssertionError("the image is open")
    assert claim.asked == [(identity_of(client, await fetch_header(client, image)), client.address)]
    with rbd.Image(client.ioctx, image) as look:
        assert list(look.lock_get_owners()) == []


async def test_a_stopped_owner_that_was_given_up_cannot_write_any_more(
    client: Client, other: Client, image: str
) -> None:
    async with (
        owned(other, image, FreeClaim()) as former,
        owned(client, image, FreeClaim(gone=[other.address])) as own,
    ):
        with pytest.raises((rbd.ConnectionShutdown, rbd.ReadOnlyImage)):
            await trio.to_thread.run_sync(former.handle.image.write, b"late", 0)
        assert await trio.to_thread.run_sync(own.handle.image.read, 0, 4) == bytes(4)
        with pytest.raises(VolumeReadOnly):
            await former.records.write(DIRTY, guard=True)
        assert await own.records.read() is None


async def test_a_lock_of_this_very_client_is_not_broken(client: Client, image: str) -> None:
    async with owned(client, image, FreeClaim()) as own:
        with pytest.raises(ImageBusy, match="this very process"):
            async with owned(client, image, FreeClaim(gone=[client.address])):
                raise AssertionError("the image is open")
        await trio.to_thread.run_sync(own.handle.image.write, b"data", 0)


async def test_a_record_and_its_guard_change_together(
    client: Client, other: Client, ceph_cluster: Cluster, image: str
) -> None:
    async with owned(client, image, FreeClaim(HERE)) as own:
        assert await own.records.read() is None
        for record, guard, expected in (
            (DIRTY, True, GUARD),
            (DIRTY, False, None),
            (ImageRecord(epoch=2), True, None),
            (DIRTY, True, GUARD),
        ):
            await own.records.write(record, guard=guard)
            header = await fetch_header(other, image)
            assert decoded_record(header, identity_of(other, header)) == await own.records.read() == record
            assert header.guard == expected
        stranger = await opened_by_stranger(ceph_cluster, image)
        assert stranger.returncode != 0
        assert GUARD in stranger.stderr
        # It goes on itself.
        await trio.to_thread.run_sync(own.handle.image.write, b"data", 0)
        await own.records.write(ImageRecord(epoch=2), guard=True)
    assert (await opened_by_stranger(ceph_cluster, image)).returncode == 0


async def test_only_the_lock_s_owner_changes_the_record(client: Client, other: Client, image: str) -> None:
    header = await fetch_header(other, image)
    records = RbdRecords(other, header, identity_of(other, header))
    with pytest.raises(VolumeReadOnly, match="not ours any more"):
        await records.write(DIRTY, guard=True)
    async with owned(client, image, FreeClaim(HERE)) as own:
        with pytest.raises(VolumeReadOnly, match="not ours any more"):
            await records.write(DIRTY, guard=True)
        await own.records.write(DIRTY, guard=False)
    with pytest.raises(VolumeReadOnly):
        await own.records.write(ImageRecord(epoch=9), guard=False)
    assert await records.read() == DIRTY


async def test_our_own_guard_is_lifted_for_the_open_and_put_back(
    client: Client, ceph_cluster: Cluster, image: str
) -> None:
    async with owned(client, image, FreeClaim(HERE)) as own:
        await own.records.write(DIRTY, guard=True)
    async with owned(client, image, FreeClaim(HERE)) as own:
        assert await guard_of(client, image) == GUARD
        assert await own.records.read() == DIRTY
        assert (await opened_by_stranger(ceph_cluster, image)).returncode != 0
    assert await guard_of(client, image) == GUARD


async def test_a_guard_that_a_crash_left_lifted_is_put_back(client: Client, ceph_cluster: Cluster, image: str) -> None:
    async with owned(client, image, FreeClaim(HERE)) as own:
        await own.records.write(DIRTY, guard=True)
    assert await change_guard(client, await fetch_header(client, image), GUARD, LIFTED)
    assert (await opened_by_stranger(ceph_cluster, image)).returncode == 0
    async with owned(client, image, FreeClaim(HERE)):
        assert await guard_of(client, image) == GUARD


async def test_a_guard_is_put_back_where_the_open_fails(
    client: Client, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with owned(client, image, FreeClaim(HERE)) as own:
        await own.records.write(DIRTY, guard=True)

    async def fail(*args: object) -> None:
        assert await guard_of(client, image) == LIFTED
        raise OSError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(ownership, "open_handle", fail)
        with pytest.raises(OSError, match="out of luck"):
            async with owned(client, image, FreeClaim(HERE)):
                raise AssertionError("the image is open")
    assert await guard_of(client, image) == GUARD


async def test_a_guard_is_not_put_back_over_another_host_s(client: Client, other: Client, image: str) -> None:
    async with owned(client, image, FreeClaim(HERE)) as own:
        await own.records.write(DIRTY, guard=True)
    header = await fetch_header(client, image)
    async with (
        guard_lifted(client, header, identity_of(client, header)),
        owned(other, image, FreeClaim(ELSEWHERE, take_over=True)) as own,
    ):
        await own.records.write(ImageRecord(epoch=2), guard=True)
    assert await guard_of(client, image) is None


async def test_dirty_data_of_another_host_keeps_the_image_closed_until_it_is_taken_over(
    client: Client, other: Client, image: str
) -> None:
    async with owned(other, image, FreeClaim(HERE)) as own:
        await own.records.write(DIRTY, guard=True)
    claim = FreeClaim(ELSEWHERE)
    with pytest.raises(ImageBusy, match=r"dirty data on host here \(a{32}\).* --layer N --dirty`"):
        async with owned(client, image, claim):
            raise AssertionError("the image is open")
    assert claim.asked == []
    assert await guard_of(client, image) == GUARD
    async with owned(client, image, FreeClaim(ELSEWHERE, take_over=True)) as own:
        assert await guard_of(client, image) == GUARD
        taken = ImageRecord(epoch=2, holder=ELSEWHERE, holder_name="there")
        await own.records.write(taken, guard=True)
        assert await guard_of(client, image) == guard_for("there")
    with pytest.raises(ImageBusy, match="host there"):
        async with owned(other, image, FreeClaim(HERE)):
            raise AssertionError("the image is open")


async def test_an_image_that_became_dirty_while_it_was_being_opened_is_not_opened(
    client: Client, other: Client, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(owned(other, image, FreeClaim(HERE)))

        async def opened_late(*args: Any) -> Any:
            handle = await open_handle(*args)
            await own.records.write(DIRTY, guard=True)
            await stack.aclose()
            return handle

        monkeypatch.setattr(ownership, "open_handle", opened_late)
        with pytest.raises(ImageBusy, match="host here"):
            async with owned(client, image, FreeClaim(ELSEWHERE)):
                raise AssertionError("the image is open")
    monkeypatch.undo()
    async with owned(other, image, FreeClaim(HERE)) as own:
        assert await own.records.read() == DIRTY


async def test_a_guard_that_nobody_answers_for_is_named_with_the_command(
    client: Client, ceph_cluster: Cluster, image: str
) -> None:
    ceph_cluster.rbd("image-meta", "set", image, "conf_rbd_plugins", GUARD)
    with pytest.raises(CorruptState, match=r"`rados rmomapkey rbd_header.* metadata_conf_rbd_plugins`"):
        async with owned(client, image, FreeClaim(HERE)):
            raise AssertionError("the image is open")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rbd_cache", "true"),
        ("rbd_blocklist_on_break_lock", "false"),
        ("rbd_blocklist_expire_seconds", "60"),
        ("rbd_persistent_cache_mode", "rwl"),
        ("rbd_disable_zero_copy_writes", "false"),
        ("rbd_plugins", "pwl_cache"),
    ],
)
async def test_an_option_that_may_lose_data_is_refused_with_the_command(
    client: Client, ceph_cluster: Cluster, image: str, key: str, value: str
) -> None:
    await trio.to_thread.run_sync(ceph_cluster.rbd, "config", "image", "set", image, key, value)
    with pytest.raises(NotSupported, match=rf"{key} = {value}, allowed: .*`rbd config image remove \S*{image} {key}`"):
        async with owned(client, image, FreeClaim(HERE)):
            raise AssertionError("the image is open")


async def test_a_removed_image_is_not_found(client: Client, ceph_cluster: Cluster, image: str) -> None:
    header = await fetch_header(client, image)
    await trio.to_thread.run_sync(ceph_cluster.rbd, "rm", image)
    with pytest.raises(ImageNotFound):
        await ownership.open_owned(client, header, identity_of(client, header), FreeClaim())


async def test_a_cancelled_open_leaves_nothing_locked(client: Client, image: str) -> None:
    for steps in range(200):
        with trio.CancelScope() as scope:
            trio.lowlevel.add_instrument(canceller := _Canceller(scope, steps))
            try:
                async with owned(client, image, FreeClaim()):
                    pass
            finally:
                trio.lowlevel.remove_instrument(canceller)
        async with owned(client, image, FreeClaim()):
            pass
        if not scope.cancelled_caught:
            break
    else:
        raise AssertionError("an open has more than 200 awaits")


class _Canceller(trio.abc.Instrument):
    """Cancels *scope* when this task has been at *steps* awaits."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self._task = trio.lowlevel.current_task()
        self._scope = scope
        self._left = steps

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_a_user_who_may_not_blocklist_is_told_so(number: int) -> None:
    # The clusters of tests let everybody do everything.
    class Refusing:
        def lock_get_owners(self) -> list[dict[str, str]]:
            return [{"owner": "10.0.0.1:0/1"}]

        def blocklist(self, address: str, seconds: float) -> None:
            """Nothing."""

        def lock_break(self, mode: int, owner: str) -> None:
            raise rbd.OSError("cannot blocklist", number)

    with pytest.raises(FusecacheError, match=r"blocklist the client 10\.0\.0\.1:0/1, .* mon 'profile rbd'"):
        ownership._break(Refusing(), "10.0.0.1:0/1", "rbd/disk", cast(Client, Refusing()))
