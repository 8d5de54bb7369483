"""Errors survive a process boundary and say in one line who failed at which step."""

import pickle

import pytest

from protocols import errors
from protocols.errors import ProtocolError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ProtocolError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_back_from_pickle_whole(kind: type[ProtocolError]) -> None:
    error = pickle.loads(pickle.dumps(kind("ann", "share", "too late")))  # noqa: S301 - our own bytes
    assert type(error) is kind
    assert (error.party, error.step, error.reason) == ("ann", "share", "too late")
    assert str(error) == "ann: share: too late"
