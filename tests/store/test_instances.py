"""What was asked in the last hour is known again, and what is certainly new is never looked for in the database."""

from __future__ import annotations

import pytest

from policyd.answer import make_answer
from policyd.decision import PASSED, Decision, Settled
from policyd.request import Request
from policyd.store import instances as instances_module
from policyd.store.instances import IDENTITY, Instances
from tests.fakes import NOW, ask


def decision(request: Request, number: int = 1) -> Decision:
    settled = Settled(make_answer("DUNNO"), PASSED, "", "", None, "", "", "[]", "")
    return Decision(number, NOW, NOW, request, settled, "p0", 1)


@pytest.fixture
def instances() -> Instances:
    instances = Instances()
    instances.complete = True
    instances.trim(NOW, 0)
    return instances


def test_what_was_taken_back_is_as_new_as_before(instances: Instances) -> None:
    """Each request of a flood is decided once in vain, for its triplet has to be read: that must not cost a look into
    every partition as well."""
    request = ask()
    instances.add(decision(request))
    instances.forget(decision(request))
    assert not instances.unread([request])


def test_what_is_let_go_is_looked_up_for_an_hour(
    instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that Postfix repeats is not counted twice, however much came between; it is forgotten in the end."""
    monkeypatch.setattr(instances_module, "TRANSACTIONS", 7)
    requests = [ask() for _ in range(8)]
    for number, request in enumerate(requests):
        instances.add(decision(request, number))
    instances.trim(NOW, 0)
    assert instances.unread(requests) == [request.instance for request in requests[:2]]
    instances.trim(NOW + IDENTITY + 1, 0)
    assert instances.unread(requests) == [request.instance for request in requests[:2]]
    instances.trim(NOW + 2 * IDENTITY + 2, 0)
    assert not instances.unread(requests)
