"""Errors of Ceph's bindings as those of the contract."""

import errno

import pytest

from fusecache.api.errors import FusecacheError, ImageBusy, ImageExists, ImageNotFound, VolumeReadOnly, errno_of

rados = pytest.importorskip("rados", reason="Ceph is not installed: no module rados")
rbd = pytest.importorskip("rbd", reason="Ceph is not installed: no module rbd")

from fusecache.backends.rbd.errors import translated  # noqa: E402 - needs the bindings


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, ImageNotFound),
        (errno.EEXIST, ImageExists),
        (errno.EBUSY, ImageBusy),
        (errno.EROFS, VolumeReadOnly),
        (errno.ENOSPC, OSError),
        (errno.EDQUOT, OSError),
        (errno.ENOTEMPTY, OSError),
    ],
)
@pytest.mark.parametrize("binding", [rados, rbd], ids=["rados", "rbd"])
def test_an_error_keeps_its_number_and_message(binding: object, number: int, kind: type[Exception]) -> None:
    error = translated(binding.OSError("what librbd said", errno=number))  # type: ignore[attr-defined]
    assert type(error) is kind
    assert errno_of(error) == number
    assert "what librbd said" in str(error)


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.ESHUTDOWN])
def test_a_cluster_that_does_not_answer_or_let_us_in_is_an_input_output_error(number: int) -> None:
    error = translated(rbd.OSError("what librbd said", errno=number))
    assert type(error) is FusecacheError
    assert errno_of(error) == errno.EIO


def test_other_errors_stay_what_they_are() -> None:
    error = ValueError("x")
    assert translated(error) is error
