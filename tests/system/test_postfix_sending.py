"""A mail program, a real Postfix and policyd: who may send does, who may not is told why, and counts are exact."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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
[tiers]
default = "regular"
[tier.regular]
limits = ["10000 messages per 1d", "10000 recipients per 1d"]
[tier.small]
limits = ["3 messages per 1h", "5 recipients per 1d"]
members = ["overdrawn@example.org", "whole@example.org", "lifted@example.org", "held@example.org"]
[tier.crowd]
limits = ["{crowd} messages per 1d"]
members = ["crowd@example.org"]
[[check]]
use = "allow"
[[check]]
use = "bans"
[[check]]
use = "quota"
on_breach = "{on_breach}"
[[check]]
use = "quota"
name = "whole-server"
per = "server"
limits = ["1000000 recipients per 1h"]
"""

#: Messages of one account through several connections at once, and of accounts of their own beside them.
CROWD = 2500
OWN = 500
REMOTE = "bob@remote.test"
REF = r"ref ([0-9A-HJKMNP-TV-Z]{5,13})"
MOMENT = r"(?:\d{4}-\d\d-\d\d )?\d\d:\d\d(?::\d\d)?(?: [+-]\d{4})?"


def policy(postfix: Postfix, on_breach: str = "defer") -> str:
    return POLICY.format(socket=postfix.queue / SOCKET, crowd=CROWD, on_breach=on_breach)


@pytest.fixture(scope="module")
def postfix() -> Iterator[Postfix]:
    with Postfix(contrib("main.cf"), stock_master_cf() + contrib("master.cf")) as postfix:
        yield postfix


@pytest.fixture(scope="module")
def policyd(postfix: Postfix, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policyd]:
    with Policyd(tmp_path_factory.mktemp("policyd"), policy(postfix)) as policyd:
        yield policyd


@pytest.fixture(autouse=True)
def _quiet(postfix: Postfix) -> Iterator[None]:
    """Whatever a test does: Postfix finds nothing to complain about, the policy service included."""
    yield
    assert postfix.complaints() == []


def matched(pattern: str, reply: str) -> re.Match[str]:
    found = re.fullmatch(pattern, reply)
    assert found, reply
    return found


@pytest.mark.parametrize("service", ["submission", "submissions"])
def test_a_login_that_may_send_sends(service: str, postfix: Postfix, policyd: Policyd) -> None:
    """On 587 and on 465 mail goes out, is delivered once to each recipient, and counts once."""
    user = f"{service}@example.org"
    with postfix.connect(service, user) as client:
        sent = [queue_id(client.send(user, REMOTE, f"{n}@remote.test")) for n in range(3)]
    assert postfix.delivered(sent) == 6
    assert (policyd.used(user, "messages"), policyd.used(user, "recipients")) == (3, 6)
    assert "can send" in policyd.ctl("why", user)


def test_a_login_over_its_quota_reads_the_numbers(postfix: Postfix, policyd: Policyd) -> None:
    """The client's reply names limit, use, window, the time of return and a reference, which explain, why and the log know."""
    user = "overdrawn@example.org"
    with postfix.connect("submission", user) as client:
        for _ in range(3):
            queue_id(client.send(user, REMOTE))
        reply = client.send(user, REMOTE)
    refusal = matched(
        r"450 4\.7\.1 <bob@remote\.test>: Recipient address rejected: "
        rf"Sending limit reached; 3 of 3 messages per hour, room again at {MOMENT}\. {REF}",
        reply,
    )
    ref = refusal[1]
    assert f"ref {ref}" in postfix.wait_for_log(rf"NOQUEUE: reject: RCPT .* ref {ref};.*")[0]
    explained = policyd.ctl_json("explain", ref)
    assert (explained["user"], explained["verdict"], explained["by"]) == (user, "refuse", "quota")
    (limit,) = [
        each for each in explained["limits"] if each["unit"].startswith("messages") and not each["fits"]
    ]
    assert (limit["allowed"], limit["used"]) == (3, 3)
    assert ref in policyd.ctl("why", user)
    wait_for(
        lambda: [line for line in policyd.decisions.read_text().splitlines() if ref in line and user in line],
        policyd.decisions.read_text,
    )
    assert policyd.used(user, "messages", "1h") == 3


def test_a_message_that_does_not_fit_is_refused_whole(postfix: Postfix, policyd: Policyd) -> None:
    """Three recipients when there is room for two: refused at the end, nobody gets it, nothing is used up; two fit."""
    user = "whole@example.org"
    with postfix.connect("submission", user) as client:
        queue_id(client.send(user, *(f"{n}@remote.test" for n in range(3))))
        reply = client.send(user, *(f"whole{n}@remote.test" for n in range(3)))
        matched(
            r"450 4\.7\.1 <END-OF-MESSAGE>: End-of-data rejected: "
            rf"Sending limit reached; 3 of 5 recipients per day, room again at {MOMENT}\. {REF}",
            reply,
        )
        assert policyd.used(user, "recipients") == 3
        reply = client.send(user, *(f"whole{n}@remote.test" for n in range(6)))
        matched(r"5\d\d 5\.7\.\d <END-OF-MESSAGE>: End-of-data rejected: .*" + REF, reply)
        assert policyd.used(user, "recipients") == 3
        queue_id(client.send(user, *(f"{n}@remote.test" for n in range(2))))
    assert policyd.used(user, "recipients") == 5
    assert "to=<whole" not in postfix.log


def test_a_ban_holds_within_an_open_session(postfix: Postfix, policyd: Policyd) -> None:
    """`policyctl ban` stops the next message of a session that was open before, and only that user's; unban lifts it."""
    with (
        postfix.connect("submission", "mallory") as client,
        postfix.connect("submission", "neighbour") as neighbour,
    ):
        queue_id(client.send("mallory@example.org", REMOTE))
        queue_id(neighbour.send("neighbour@example.org", REMOTE))
        policyd.ctl("ban", "user", "mallory@example.org", "--reason", "sends spam")
        reply = client.send("mallory@example.org", REMOTE)
        refusal = matched(
            r"550 5\.7\.1 <bob@remote\.test>: Recipient address rejected: "
            rf"Sending is not permitted for this login; contact postmaster\. {REF}",
            reply,
        )
        assert "sends spam" not in reply
        assert policyd.ctl_json("explain", refusal[1])["by"] == "bans"
        assert "sends spam" in policyd.ctl("why", "mallory")
        queue_id(neighbour.send("neighbour@example.org", REMOTE))
        policyd.ctl("unban", "user", "mallory@example.org")
        queue_id(client.send("mallory@example.org", REMOTE))
    assert policyd.used("mallory", "messages") == 2


def test_a_ban_between_recipient_and_end_holds(postfix: Postfix, policyd: Policyd) -> None:
    """A message that is under way when its sender is banned is not accepted any more, and does not count."""
    with postfix.connect("submission", "midway") as client:
        queue_id(client.send("midway@example.org", REMOTE))

        def ban() -> None:
            policyd.ctl("ban", "user", "midway@example.org")

        reply = client.send("midway@example.org", REMOTE, before_end=ban)
    assert reply.startswith("550 5.7.1 <END-OF-MESSAGE>: End-of-data rejected: Sending is not permitted")
    assert policyd.used("midway", "messages") == 1


def test_who_was_lifted_sends_again(postfix: Postfix, policyd: Policyd) -> None:
    """A grant, then a limit of its own, let an account that had no room go on, within the same session."""
    user = "lifted@example.org"
    with postfix.connect("submission", user) as client:
        for _ in range(3):
            queue_id(client.send(user, REMOTE))
        assert client.send(user, REMOTE).startswith("450 4.7.1 ")
        policyd.ctl("quota", "grant", user, "1", "messages", "--for", "1h", "--reason", "newsletter")
        queue_id(client.send(user, REMOTE))
        assert "4 of 4 messages per hour" in client.send(user, REMOTE)
        policyd.ctl("quota", "set", user, "50 messages per 1h")
        policyd.ctl("quota", "set", user, "50 recipients per 1d")
        queue_id(client.send(user, REMOTE))
    assert policyd.used(user, "messages", "1h") == 5


def test_many_recipients_count_each(postfix: Postfix, policyd: Policyd) -> None:
    """A message to 200 recipients is one message and 200 recipients."""
    user = "many@example.org"
    with postfix.connect("submission", user) as client:
        sent = queue_id(client.send(user, *(f"{n}@remote.test" for n in range(200))))
    assert postfix.delivered([sent]) == 200
    assert (policyd.used(user, "messages"), policyd.used(user, "recipients")) == (1, 200)
    (row,) = policyd.ctl_json("log", "--queue-id", sent, "--stage", "END-OF-MESSAGE")
    assert row["recipient_count"] == 200


def test_hold_puts_mail_into_the_hold_queue(postfix: Postfix, policyd: Policyd) -> None:
    """on_breach = "hold", taken over by a reload: mail over the limit waits in the hold queue, up to the limit again."""
    user = "held@example.org"
    policyd.reload(policy(postfix, on_breach="hold"))
    try:
        with postfix.connect("submission", user) as client:
            passed = [queue_id(client.send(user, REMOTE)) for _ in range(3)]
            assert postfix.held() == set()
            held = [queue_id(client.send(user, REMOTE)) for _ in range(3)]
            matched(r"4\d\d .*: Sending limit reached; .*" + REF, client.send(user, REMOTE))
        assert postfix.held() == set(held)
        assert postfix.delivered(passed) == 3
        (row,) = policyd.ctl_json("log", "--queue-id", held[0], "--stage", "END-OF-MESSAGE")
        assert row["verdict"] == "hold"
        postfix.admin("postsuper", "-H", held[0], quiet=False)
        postfix.admin("postqueue", "-i", held[0])
        assert postfix.delivered(held[:1]) == 1
        postfix.admin("postsuper", "-d", "ALL", "hold", quiet=False)
    finally:
        policyd.reload(policy(postfix))


def test_counts_equal_what_postfix_accepted(postfix: Postfix, policyd: Policyd) -> None:
    """5,000 messages through ten connections at once: one account to its limit by five of them, five on their own.

    Exactly the limit passes, everything else passes, and messages, recipients and the server's own counter are what Postfix
    delivered, one for one.
    """
    accepted: dict[str, list[tuple[str, int]]] = {}

    def send_all(user: str, most: int, accepted: list[tuple[str, int]]) -> None:
        with postfix.connect("submission", user) as client:
            for at in range(most):
                recipients = [f"{at}.{n}@remote.test" for n in range(1 + at % 3 if user != "crowd" else 1)]
                reply = client.send(f"{user}@example.org", *recipients, size=100 + at % 400)
                if reply[0] != "2":
                    assert f"Sending limit reached; {CROWD} of {CROWD} messages per day" in reply
                    return
                accepted.append((queue_id(reply), len(recipients)))

    before = server_count(policyd)
    with ThreadPoolExecutor(10) as pool:
        work = [
            pool.submit(send_all, user, most, accepted.setdefault(f"{user}/{at}", []))
            for at in range(5)
            for user, most in (("crowd", CROWD), (f"single{at}", OWN))
        ]
    for worker in work:
        worker.result()

    crowd = [each for name, mine in accepted.items() if name.startswith("crowd/") for each in mine]
    everything = [each for mine in accepted.values() for each in mine]
    assert len({name for name, _ in everything}) == len(everything) == CROWD + 5 * OWN
    assert len(crowd) == CROWD == policyd.used("crowd", "messages")
    for at in range(5):
        mine = accepted[f"single{at}/{at}"]
        assert policyd.used(f"single{at}", "messages") == len(mine) == OWN
        assert policyd.used(f"single{at}", "recipients") == sum(count for _, count in mine)
    recipients = sum(count for _, count in everything)
    assert postfix.delivered(name for name, _ in everything) == recipients
    assert server_count(policyd) - before == recipients
    by_user = {
        row["user"]: row
        for row in policyd.ctl_json("log", "--by", "user", "--limit", "0", "--stage", "END-OF-MESSAGE")
    }
    assert by_user["crowd@example.org"]["passed"] == CROWD


def server_count(policyd: Policyd) -> int:
    """Recipients that the counter of the whole server holds."""
    rows = policyd.ctl_json("quota", "top", "--per", "server", "--window", "1h")
    return int(rows[0]["external"]) if rows else 0
