"""What the Ceph user of a mount may do in the pool, found out before the mount serves.

Owns the questions, and how people are told what is missing. It must not know what the rights are used for.

Each question is a request that changes nothing, whoever asks: the cluster looks at the rights first, and then finds
nothing to do. Without the right to list there is no backend; what else is missing is an event, as what does not need it
works all the same.

=============  ==================================================  ====================================================
right          question                                            without it
=============  ==================================================  ====================================================
to list        one name of the directory of images                 there is nothing to show
to write       a key is removed from an object that is not there   no image can be locked, and so opened; snapshots can
to blocklist   what is no address is to be blocklisted             the lock of an owner that died cannot be broken
=============  ==================================================  ====================================================
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from fusecache.api import Emit, FusecacheError
from fusecache.backends.rbd.client import Client, Settings
from fusecache.backends.rbd.errors import error_of
from fusecache.backends.rbd.lookup import check_listing

log = logging.getLogger(__name__)

_PATIENCE: Final = 1.0
"""How long a mount waits for the answers that only lead to an event, in seconds: a full cluster answers no writes."""

_NO_OBJECT: Final = "fusecache_asks_for_its_rights"
_NO_ADDRESS: Final = "nobody/0"


async def check_rights(client: Client, settings: Settings, emit: Emit) -> None:
    """See that the names of the pool can be listed; tell by an event what else the user lacks.

    Raises:
        FusecacheError: EIO, the user may not list names; the message says what it needs. Or the cluster does not
            answer in time.
        OSError: it answers with an error.
    """
    user = f"the Ceph user client.{settings.user}"
    needs = f"it needs the capabilities `{_needed(settings)}`"
    try:
        await check_listing(client)
    except PermissionError as error:
        raise FusecacheError(f"{user} may not list the images of the pool {_place(settings)}: {needs}") from error
    if not await _may(_write_nothing, client):
        _tell(emit, f"{user} may not write to the pool {_place(settings)}: only snapshots can be opened; {needs}")
    if not await _may(_blocklist_nobody, client):
        _tell(emit, f"{user} may not blocklist clients: an image whose owner has died cannot be opened; {needs}")


def _place(settings: Settings) -> str:
    return "/".join(filter(None, (settings.pool, settings.namespace)))


def _needed(settings: Settings) -> str:
    """Return the capabilities that a user of the pool, or of one namespace of it, needs."""
    namespace = f" namespace={settings.namespace}" if settings.namespace else ""
    return f"mon 'profile rbd' osd 'profile rbd pool={settings.pool}{namespace}'"


def _tell(emit: Emit, text: str) -> None:
    log.warning("%s", text)
    emit("rights-missing", text)


async def _may(ask: Callable[[Client], Awaitable[None]], client: Client) -> bool:
    """Say whether the cluster lets the user; as far as it does not answer at once, it does."""
    with trio.move_on_after(_PATIENCE):
        try:
            await ask(client)
        except PermissionError:
            return False
        except (FusecacheError, OSError) as error:
            log.debug("the answer to a question that has none: %s", error)
    return True


async def _write_nothing(client: Client) -> None:
    def submit(finish: Callable[..., None]) -> None:
        ioctx = client.ioctx
        operation = ioctx.create_write_op()

        def complete(completion: Any) -> None:
            ioctx.release_write_op(operation)
            finish(completion.get_return_value())

        ioctx.remove_omap_keys(operation, (_NO_OBJECT,))
        ioctx.operate_aio_write_op(operation, _NO_OBJECT, complete)

    (result,) = await client.operate(submit)
    if result < 0:
        raise error_of(-result, "nothing was written")


async def _blocklist_nobody(client: Client) -> None:
    await client.ask(client.blocklist, _NO_ADDRESS, 1.0)
