"""What a mail program and Postfix see when policyd is killed and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.daemon import Policyd
from tests.system.postfix import SOCKET, Postfix, contrib, queue_id, stock_master_cf

POLICY = """
[site]
domains = ["example.org"]
default_domain = "example.org"
[server]
listen = ["unix:{socket}"]
[tiers]
default = "regular"
[tier.regular]
limits = ["6 messages per 1d"]
[[check]]
use = "bans"
[[check]]
use = "quota"
"""
REMOTE = "bob@remote.test"


@pytest.fixture(scope="module")
def postfix() -> Iterator[Postfix]:
    with Postfix(contrib("main.cf"), stock_master_cf() + contrib("master.cf")) as postfix:
        yield postfix


@pytest.fixture
def policyd(postfix: Postfix, tmp_path: Path) -> Iterator[Policyd]:
    with Policyd(tmp_path, POLICY.format(socket=postfix.queue / SOCKET)) as policyd:
        yield policyd


def test_killed_and_back_within_a_session(postfix: Postfix, policyd: Policyd) -> None:
    """kill -9: submission waits with the admin's text, inbound mail goes on; once back, counts and bans are as they were."""
    policyd.ctl("ban", "user", "mallory@example.org", "--force")
    with postfix.connect("submission", "alice") as client:
        accepted = [queue_id(client.send("alice@example.org", REMOTE)) for _ in range(3)]
        policyd.kill()
        assert client.send("alice@example.org", REMOTE) == (
            "451 4.3.0 <bob@remote.test>: Recipient address rejected: "
            "Sending is not possible at the moment; try again in some minutes"
        )
        with postfix.connect("smtp") as stranger:
            accepted.append(queue_id(stranger.send("x@remote.test", "alice@example.org")))
        assert [
            line for line in postfix.complaints() if "problem talking to server policyd/policy.sock" in line
        ]
        policyd.start()
        assert policyd.used("alice", "messages") == 3
        accepted += [queue_id(client.send("alice@example.org", REMOTE)) for _ in range(3)]
        assert "Sending limit reached; 6 of 6 messages per day" in client.send("alice@example.org", REMOTE)
    with postfix.connect("submission", "mallory") as client:
        assert client.send("mallory@example.org", REMOTE).startswith("550 5.7.1 ")
    assert policyd.used("alice", "messages") == 6
    assert postfix.delivered(accepted) == 7


def test_killed_between_recipient_and_end_of_message(postfix: Postfix, policyd: Policyd) -> None:
    """A message under way when policyd is killed and started again is accepted and counted, once."""
    with postfix.connect("submission", "bob") as client:
        queue_id(client.send("bob@example.org", REMOTE))

        def kill_and_start() -> None:
            policyd.kill()
            policyd.start()

        queue_id(client.send("bob@example.org", REMOTE, before_end=kill_and_start))
    assert policyd.used("bob", "messages") == 2


def test_a_restart_in_order_costs_no_mail(postfix: Postfix, policyd: Policyd) -> None:
    """SIGTERM and a start between two messages of one session: the next is accepted, without a complaint in the mail log."""
    with postfix.connect("submission", "carol") as client:
        queue_id(client.send("carol@example.org", REMOTE))
        before = postfix.complaints()
        policyd.stop()
        policyd.start()
        queue_id(client.send("carol@example.org", REMOTE))
    assert policyd.used("carol", "messages") == 2
    assert postfix.complaints() == before
