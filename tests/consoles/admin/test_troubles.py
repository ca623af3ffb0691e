"""An expected error becomes a sentence; a bug does not."""

from __future__ import annotations

import pytest

from sqlqueue.consoles.troubles import trouble_of
from sqlqueue.errors import NotAvailable, SqlQueueError
from sqlqueue_transport import errors


def every(kind: type[Exception]) -> list[type[Exception]]:
    return [kind, *(one for child in kind.__subclasses__() for one in every(child))]


@pytest.mark.parametrize("kind", every(errors.TransportError))
def test_every_error_of_the_transport_has_a_sentence(kind):
    error = kind.__new__(kind)
    error.args = ("the text",)
    found = trouble_of(error)
    assert found is not None
    assert found.title.endswith(".")


def test_what_waiting_cannot_help_is_not_waited_for():
    assert not trouble_of(NotAvailable("lists")).passes
    assert not trouble_of(errors.SchemaTooNew("newer")).passes
    assert trouble_of(errors.DatabaseMissing("no database at x")).passes
    assert trouble_of(SqlQueueError("x")).passes


def test_bug_is_no_trouble():
    assert trouble_of(KeyError("x")) is None
