"""The claim on an image: the state directory's lock when the backend asks, and never the loop's time."""

import errno
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from fusecache.api.errors import ContractViolation, FusecacheError, ImageBusy, VolumeClosed
from fusecache.api.identity import Identity
from fusecache.stack import claim as claim_module
from fusecache.stack.claim import HostClaim, claiming
from fusecache.state.image_state import ImageState
from fusecache.state.store import StateStore

IDENTITY = Identity("rbd:fsid:1::abc")


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path)


@asynccontextmanager
async def claimed(store: StateStore, client: str = "C") -> AsyncIterator[HostClaim]:
    async with claiming(store, name="disk", mountpoint=None, take_over=False) as claim:
        await claim(IDENTITY, client)
        yield claim


class Hanging:
    """Has the locking of images hang."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.ended = threading.Event()
        self._lock = StateStore.lock_image
        # A function, which becomes a method; a bound method would not.
        monkeypatch.setattr(StateStore, "lock_image", lambda *args, **kwargs: self._hang(*args, **kwargs))  # noqa: PLW0108

    def _hang(self, *args: object, **kwargs: object) -> ImageState:
        self.go.wait()
        try:
            return self._lock(*args, **kwargs)  # type: ignore[arg-type]
        finally:
            self.ended.set()


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    made = Hanging(monkeypatch)
    yield made
    made.go.set()


async def test_a_claim_locks_the_image_until_the_end(store: StateStore) -> None:
    async with claiming(store, name="disk", mountpoint="/mnt/images", take_over=True) as claim:
        assert (claim.host, claim.take_over, claim.state) == (store.host(), True, None)
        with store.lock_image(IDENTITY, name="disk", mountpoint=None):
            pass
        assert await claim(IDENTITY, "C") == ()
        with pytest.raises(ImageBusy, match="mounted at /mnt/images"):
            store.lock_image(IDENTITY, name="disk", mountpoint=None)
    with store.lock_image(IDENTITY, name="disk", mountpoint=None) as state:
        assert state.former == ()


async def test_former_clients_are_told_and_forgotten_once_settled(store: StateStore) -> None:
    os.close(store.lock_image(IDENTITY, name="disk", mountpoint=None, client="F")._fd)
    for settles in (False, True):
        async with claiming(store, name="disk", mountpoint=None, take_over=False) as claim:
            assert await claim(IDENTITY, "C") == ("F",)
            if settles:
                await claim.use(ImageState.settle)
    async with claimed(store) as claim:
        assert claim.state is not None
        assert claim.state.former == ()


async def test_a_claim_that_is_refused_holds_nothing(store: StateStore) -> None:
    async with claimed(store), claiming(store, name="disk", mountpoint=None, take_over=False) as other:
        with pytest.raises(ImageBusy):
            await other(IDENTITY, "D")
        assert other.state is None
    async with claimed(store) as claim:
        assert claim.state is not None
        assert claim.state.former == ()


async def test_a_second_claim_in_one_open_is_a_fault(store: StateStore) -> None:
    async with claimed(store) as claim:
        with pytest.raises(ContractViolation):
            await claim(IDENTITY, "C")


async def test_state_is_used_under_the_claim_only(store: StateStore) -> None:
    async with claiming(store, name="disk", mountpoint=None, take_over=False) as claim:
        with pytest.raises(VolumeClosed):
            await claim.use(ImageState.read_manifest)
        await claim(IDENTITY, "C")
        assert await claim.use(ImageState.read_manifest) is None
    with pytest.raises(VolumeClosed):
        await claim.use(ImageState.read_manifest)


async def test_a_cancelled_claim_does_not_wait_and_leaves_the_image_free(
    store: StateStore, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_module, "_PATIENCE", 0.01)
    with trio.fail_after(5):
        with trio.move_on_after(0.01) as patience:
            async with claimed(store):
                raise AssertionError("the image is not locked")
        assert patience.cancelled_caught
        hanging.go.set()
        await trio.to_thread.run_sync(hanging.ended.wait)
        await until_free(store)
        await until_threads_are_free()
    assert not list(store.directory.glob("images/*/clients"))


async def test_a_claim_that_is_kept_stays_on_record_until_it_is_let_go(store: StateStore) -> None:
    async with claimed(store) as claim:
        releases = [claim.keep(), claim.keep()]
    (clients,) = store.directory.glob("images/*/clients")
    for release in releases:
        assert clients.read_text() == "C\n"
        with pytest.raises(ImageBusy):
            store.lock_image(IDENTITY, name="disk", mountpoint=None)
        release()
        release()
    with trio.fail_after(5):
        await until_free(store)
    assert not clients.exists()


async def test_the_next_claim_of_this_process_waits_for_one_that_is_kept(store: StateStore) -> None:
    async with claimed(store) as claim:
        let_go = claim.keep()
    async with trio.open_nursery() as nursery:

        async def claim_again() -> None:
            async with claiming(store, name="disk", mountpoint=None, take_over=False) as again:
                assert await again(IDENTITY, "D", 5.0) == ()

        nursery.start_soon(claim_again)
        await until_waited_for()
        let_go()
    assert not list(store.directory.glob("images/*/clients"))


async def until_threads_are_free() -> None:
    """Wait until no claim has a thread any more: one that ends after its loop has may leave the next loop hanging."""
    with trio.fail_after(5):
        while claim_module._threads.borrowed_tokens:  # noqa: ASYNC110 - threads that were left behind tell nobody
            await trio.sleep(0.001)


async def until_waited_for() -> None:
    """Wait until somebody waits for a claim that is kept."""
    with trio.fail_after(5):
        while not any(claim_module._leaving._waiting.values()):  # noqa: ASYNC110 - who waits tells nobody
            await trio.sleep(0.001)


async def test_what_is_kept_for_too_long_is_said_and_changes_nothing(store: StateStore) -> None:
    async with claimed(store) as claim:
        let_go = claim.keep()
    async with claiming(store, name="disk", mountpoint=None, take_over=False) as again:
        for patience in (0.0, 0.01):
            with pytest.raises(FusecacheError, match="still being closed: the backend") as caught:
                await again(IDENTITY, "D", patience)
            assert (caught.value.errno, again.state) == (errno.EIO, None)
    (clients,) = store.directory.glob("images/*/clients")
    assert clients.read_text() == "C\n"
    let_go()
    async with claiming(store, name="disk", mountpoint=None, take_over=False) as last:
        await last(IDENTITY, "E", 5.0)


async def test_a_claim_waits_for_what_it_keeps_itself_and_is_held_meanwhile(store: StateStore) -> None:
    async with claiming(store, name="disk", mountpoint=None, take_over=False) as claim:
        await claim.until_closed()
        await claim(IDENTITY, "C", 5.0)
        await claim.until_closed()
        releases = [claim.keep(), claim.keep()]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(claim.until_closed)
            await until_waited_for()
            for release in releases:
                assert claim_module._leaving._waiting
                release()
        assert not claim_module._leaving._waiting
        with pytest.raises(ImageBusy):
            store.lock_image(IDENTITY, name="disk", mountpoint=None)
    store.lock_image(IDENTITY, name="disk", mountpoint=None).release()


async def test_a_claim_waits_no_longer_for_itself_than_another_would(store: StateStore) -> None:
    async with claiming(store, name="disk", mountpoint=None, take_over=False) as claim:
        await claim(IDENTITY, "C", 0.01)
        let_go = claim.keep()
        with pytest.raises(FusecacheError, match=r"after 0\.01 s it is still being closed") as caught:
            await claim.until_closed()
        assert caught.value.errno == errno.EIO
    async with trio.open_nursery() as nursery:

        async def claim_again() -> None:
            async with claiming(store, name="disk", mountpoint=None, take_over=False) as again:
                assert await again(IDENTITY, "D", 5.0) == ()

        nursery.start_soon(claim_again)
        await until_waited_for()
        let_go()


async def test_an_image_that_is_open_in_this_process_is_not_waited_for(store: StateStore) -> None:
    async with claimed(store), claiming(store, name="disk", mountpoint=None, take_over=False) as other:
        with trio.fail_after(5), pytest.raises(ImageBusy):
            await other(IDENTITY, "D", 60.0)


async def until_free(store: StateStore) -> None:
    """Wait until a thread that was left behind has released the image."""
    while True:
        try:
            store.lock_image(IDENTITY, name="disk", mountpoint=None).release()
        except ImageBusy:
            await trio.sleep(0.001)
        else:
            return


async def test_a_hanging_state_directory_takes_no_thread_of_others(
    store: StateStore, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_module, "_PATIENCE", 0.01)
    limiter = trio.to_thread.current_default_thread_limiter()
    async with trio.open_nursery() as nursery:

        async def claim_it() -> None:
            async with claimed(store):
                raise AssertionError("the image is not locked")

        for _ in range(2 * int(limiter.total_tokens)):
            nursery.start_soon(claim_it)
        await trio.testing.wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == 0
        nursery.cancel_scope.cancel()
    hanging.go.set()
    await until_threads_are_free()


async def test_giving_up_waits_for_what_a_thread_still_does_with_the_state(store: StateStore) -> None:
    go, begun = threading.Event(), threading.Event()

    def work(state: ImageState) -> None:
        begun.set()
        go.wait()

    async with trio.open_nursery() as nursery:

        async def use_it() -> None:
            async with claimed(store) as claim:
                await claim.use(work)

        nursery.start_soon(use_it)
        await trio.to_thread.run_sync(begun.wait)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(ImageBusy):
                store.lock_image(IDENTITY, name="disk", mountpoint=None)
            go.set()
    store.lock_image(IDENTITY, name="disk", mountpoint=None).release()
