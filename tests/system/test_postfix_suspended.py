"""A hijacked account at a real Postfix: refused in its session, its mails held, then released, sending on in the same session."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.system.daemon import Policyd
from tests.system.postfix import SOCKET, Postfix, contrib, queue_id, stock_master_cf
from tests.system.waiting import wait_for

POLICY = """
[site]
domains = ["example.org"]
default_domain = "example.org"
[server]
listen = ["unix:{socket}"]
[[check]]
use = "bans"
[[check]]
use = "quota"
limits = ["1000 recipients per 1d"]
[[detect]]
name = "address-book"
when = "more than 3 recipients per user in 1h"
then = "suspend"
"""
# What is accepted stays in the queue: error(8) puts every delivery off.
NO_DELIVERY = "postconf -e 'default_transport = retry:4.3.0 waits'"
REF = r"ref ([0-9A-HJKMNP-TV-Z]{5,13})"
ALICE, BOB = "alice@example.org", "bob@example.org"


@pytest.fixture
def postfix() -> Iterator[Postfix]:
    with Postfix(contrib("main.cf"), stock_master_cf() + contrib("master.cf"), NO_DELIVERY) as postfix:
        yield postfix
        assert postfix.complaints() == []


@pytest.fixture
def policyd(postfix: Postfix, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policyd]:
    policy = POLICY.format(socket=postfix.queue / SOCKET)
    with Policyd(tmp_path_factory.mktemp("policyd"), policy) as policyd:
        yield policyd


def deferred(postfix: Postfix) -> set[str]:
    return {path.name for path in (postfix.queue / "deferred").rglob("*") if path.is_file()}


def refusal(reply: str) -> str:
    """The reference in the refusal of a suspended login."""
    found = re.search(rf"^550 5\.7\.1 .*Sending suspended; .* {REF}$", reply)
    assert found, reply
    return found[1]


def test_suspended_held_released(postfix: Postfix, policyd: Policyd) -> None:
    """The mail that crosses the line is refused with a reference that explain knows; hold takes exactly its mails, whoever wrote
    whom; after the release the same session sends again."""
    config = ("--postfix-config", str(postfix.config))

    def queue(user: str, *words: str) -> list[str]:
        found = policyd.ctl_json("queue", user, *words, *config)
        return sorted(found["done"] if isinstance(found, dict) else [row["queue_id"] for row in found])

    with postfix.connect("submission", "alice") as alice, postfix.connect("submission", BOB) as bob:
        hers = [queue_id(alice.send(ALICE, f"{n}@remote.test")) for n in range(3)]
        # Whose it is says the login, not the sender.
        his = [queue_id(bob.send(sender, "x@remote.test")) for sender in (BOB, ALICE)]
        wait_for(lambda: deferred(postfix) == {*hers, *his}, lambda: f"{deferred(postfix)}\n{postfix.log}")
        began = refusal(alice.send(ALICE, "3@remote.test"))
        again = refusal(alice.send(ALICE, "0@remote.test"))
        assert began != again

        for ref in (began, again):
            explained = policyd.ctl_json("explain", ref)["suspension"]
            assert (explained["detector"], explained["ref"]) == ("address-book", began)
            assert explained["when"] == "more than 3 recipients per user in 1h"
        assert f"policyctl release {ALICE} --note TEXT" in policyd.ctl("why", "alice")
        assert [row["value"] for row in policyd.ctl_json("bans", "suspended")] == [ALICE]

        assert queue("alice") == sorted(hers)
        alert = {"data": {"kind": "suspend", "subject": ALICE, "resolved": False, "facts": {}}}
        assert policyd.ctl("queue", "-", "--hold", "--yes", "--quiet", *config, stdin=json.dumps(alert)) == ""
        assert postfix.held() == set(hers)
        assert deferred(postfix) == set(his)
        assert queue(BOB) == sorted(his)
        queue_id(bob.send(BOB, "x@remote.test"))

        policyd.ctl("release", "alice", "--note", "new password", "--password-changed")
        queue_id(alice.send(ALICE, "3@remote.test"))
        assert policyd.ctl_json("user", "show", "alice")["tier_by"] == "probation"

        assert queue("alice", "--release", "--yes") == sorted(hers)
        assert postfix.held() == set()
        assert set(hers) <= set(queue("alice", "--delete", "--yes"))
        assert queue("alice") == []
        assert set(his) <= set(queue(BOB))
