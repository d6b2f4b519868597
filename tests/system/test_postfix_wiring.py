"""What contrib/postfix tells an admin to write, loaded into Postfix as it stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.daemon import Policyd
from tests.system.postfix import SOCKET, Postfix, contrib, queue_id, stock_master_cf, switched_on, without
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
limits = ["3 messages per 1h", "100 recipients per 1d"]
[[check]]
use = "bans"
[[check]]
use = "quota"
"""

SUBMISSION = ("submission", "submissions")


@contextmanager
def running(directory: Path, postfix: Postfix) -> Iterator[tuple[Postfix, Policyd]]:
    with postfix, Policyd(directory, POLICY.format(socket=postfix.queue / SOCKET)) as policyd:
        yield postfix, policyd


def shortest_way() -> tuple[str, str]:
    """The four lines of main.cf and the commands that the README gives."""
    text = contrib("README.md")
    (main_cf,) = re.findall(r"^```\n(policyd = .*?)^```$", text, re.MULTILINE | re.DOTALL)
    (commands,) = re.findall(r"^```sh\n(postconf .*?)^postfix reload\n```$", text, re.MULTILINE | re.DOTALL)
    return main_cf, commands


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postfix, Policyd]]:
    """The README's shortest way on Debian's files; service 2587 is a submission entry to which nothing was done."""
    main_cf, commands = shortest_way()
    assert len(main_cf.splitlines()) == 4
    stock = stock_master_cf(*SUBMISSION)
    untouched = re.sub(r"^submission\b", "2587", entry_of(stock, "submission"))
    with running(tmp_path_factory.mktemp("short"), Postfix(main_cf, stock + untouched, commands)) as pair:
        yield pair


def test_four_lines_limit_debians_stock_submission_entries(short: tuple[Postfix, Policyd]) -> None:
    """On Debian's own 587 and 465 entries bans hold at RCPT, each message counts once, and limits are exact."""
    postfix, policyd = short
    for service in (*SUBMISSION, "submission"):
        with postfix.connect(service, "alice") as client:
            queue_id(client.send("alice@example.org", "bob@remote.test", "carol@remote.test"))
    assert policyd.used("alice", "messages", "1h") == 3
    assert policyd.used("alice", "recipients") == 6
    policyd.ctl("ban", "user", "mallory@example.org", "--force")
    for service in SUBMISSION:
        with postfix.connect(service, "mallory") as client:
            reply = client.send("mallory@example.org", "bob@remote.test")
        assert reply.startswith("550 5.7.1 <bob@remote.test>: ")
        with postfix.connect(service, "alice") as client:
            reply = client.send("alice@example.org", "bob@remote.test")
        assert "Sending limit reached; 3 of 3 messages per hour" in reply
    assert postfix.complaints() == []


def test_both_stages_are_asked_on_every_port(short: tuple[Postfix, Policyd]) -> None:
    """25, 587 and 465: one request for each recipient and one at the end of the message."""
    postfix, policyd = short
    for service in ("smtp", *SUBMISSION):
        login = "" if service == "smtp" else "dave"
        with postfix.connect(service, login) as client:
            name = queue_id(client.send(f"{service}@example.org", "a@example.org", "b@example.org"))
        (end,) = policyd.ctl_json("log", "--queue-id", name, "--stage", "END-OF-MESSAGE")
        asked = policyd.ctl_json("log", "--sender", f"{service}@example.org")
        assert [row["stage"] for row in asked] == ["RCPT", "RCPT", "END-OF-MESSAGE"]
        assert {row["instance"] for row in asked} == {end["instance"]}
        assert end["recipient_count"] == 2


def test_a_stock_entry_that_is_left_alone_asks_at_the_end_only(short: tuple[Postfix, Policyd]) -> None:
    """Why the README has the two commands: Debian's entries override the recipient list of main.cf."""
    postfix, policyd = short
    with postfix.connect("2587", "erin") as client:
        queue_id(client.send("erin@example.org", "bob@remote.test"))
    assert [row["stage"] for row in policyd.ctl_json("log", "--user", "erin")] == ["END-OF-MESSAGE"]


def test_sendmail_goes_around_policyd(short: tuple[Postfix, Policyd]) -> None:
    """What the README warns of: pickup(8) asks nobody."""
    postfix, policyd = short
    assert postfix.sendmail("app@example.org", "unseen@remote.test") == ""
    postfix.wait_for_log(r"to=<unseen@remote\.test>.* status=sent ")
    assert policyd.ctl_json("log", "--recipient", "unseen@remote.test") == []


def test_the_pieces_of_master_cf_are_debians_but_for_three_lines() -> None:
    """An admin may take our submission entries for Debian's: they differ in what the comment says, and nowhere else."""
    ours, debians = contrib("master.cf"), stock_master_cf(*SUBMISSION)
    for entry in SUBMISSION:
        our_options, stock_options = (options_of(text, entry) for text in (ours, debians))
        changed = {
            option for option in our_options if option not in stock_options or "mua_" in our_options[option]
        }
        assert changed == {
            "smtpd_relay_restrictions",
            "smtpd_recipient_restrictions",
            "smtpd_end_of_data_restrictions",
        }
        assert {name: value for name, value in our_options.items() if name not in changed} == {
            name: value for name, value in stock_options.items() if name not in changed
        }


def entry_of(master_cf: str, entry: str) -> str:
    found = re.search(rf"^{entry}\s+inet.*\n(?:(?:  |#).*\n)+", master_cf, re.MULTILINE)
    assert found
    return found[0]


def options_of(master_cf: str, entry: str) -> dict[str, str]:
    return dict(re.findall(r"^  -o (\w+)=(.*)$", entry_of(master_cf, entry), re.MULTILINE))


def test_the_commands_in_master_cf_make_the_same_entries_of_debians_own() -> None:
    """Editing in place with postconf and pasting the pieces come to the same."""
    comment = re.search(r"^#   for service.*?^#   done\n", contrib("master.cf"), re.MULTILINE | re.DOTALL)
    assert comment
    commands = re.sub(r"^#", "", comment[0], flags=re.MULTILINE)
    edited = Postfix(contrib("main.cf"), stock_master_cf(*SUBMISSION), commands)
    pasted = Postfix(contrib("main.cf"), stock_master_cf() + contrib("master.cf"))
    entries = []
    for postfix in (edited, pasted):
        rows = postfix.admin("postconf", "-M").splitlines()
        entries.append([sorted(row.split(" -o ")[1:]) for row in rows if "syslog_name=postfix/subm" in row])
        postfix.remove()
    assert len(entries[0]) == 2
    assert entries[0] == entries[1]


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postfix, Policyd]]:
    """All of contrib/postfix, the entries for local mail too."""
    pieces = contrib("master.cf", "pickup", "127.0.0.1:10026")
    postfix = Postfix(contrib("main.cf"), without(stock_master_cf(), "pickup") + pieces)
    with running(tmp_path_factory.mktemp("wired"), postfix) as pair:
        yield pair


def test_postfix_takes_the_pieces_without_a_word(wired: tuple[Postfix, Policyd]) -> None:
    """`postconf` and `postfix check` find nothing to warn about, the socket's directory included."""
    postfix, _ = wired
    postfix.admin("postconf", "-n")
    postfix.admin("postconf", "-M")
    postfix.admin("postfix", "check")
    assert postfix.complaints() == []


def test_the_context_tells_submission_from_mx(wired: tuple[Postfix, Policyd]) -> None:
    """Two entries, the same client and sender, no login: policy_context alone decides which side the mail is on."""
    postfix, policyd = wired
    with postfix.connect("smtp") as client:
        inbound = queue_id(client.send("x@remote.test", "alice@example.org"))
    with postfix.connect("10026") as client:
        outbound = queue_id(client.send("x@remote.test", "bob@remote.test"))
    told = {}
    for name in (inbound, outbound):
        (row,) = policyd.ctl_json("log", "--queue-id", name)
        told[name] = (row["stage"], row["direction"], row["context"], row["user"])
    assert told == {
        inbound: ("END-OF-MESSAGE", "mx", "mx", ""),
        outbound: ("END-OF-MESSAGE", "submission", "submission", "client:127.0.0.1"),
    }
    assert postfix.complaints() == []


def test_mail_from_a_content_filter_is_not_asked_about_again(wired: tuple[Postfix, Policyd]) -> None:
    """The re-injection listener takes mail without a request, however often a filter gives it back."""
    postfix, policyd = wired
    before = policyd.ctl_json("log", "--limit", "0")
    with postfix.connect("10025") as client:
        given_back = [
            queue_id(client.send("alice@example.org", "bob@remote.test", "c@remote.test")) for _ in range(5)
        ]
    assert postfix.delivered(given_back) == 10
    assert policyd.ctl_json("log", "--limit", "0") == before
    assert postfix.complaints() == []


def test_a_stranger_on_587_is_refused_unasked(wired: tuple[Postfix, Policyd]) -> None:
    """mua_relay_restrictions keeps who has not logged in from being asked about, and from using anything up."""
    postfix, policyd = wired
    before = policyd.ctl_json("log", "--limit", "0")
    with postfix.connect("submissions") as client:
        assert client.send("alice@example.org", "bob@remote.test").startswith("554 5.7.1 ")
    assert policyd.ctl_json("log", "--limit", "0") == before


def test_local_mail_is_asked_about_when_pickup_goes_through_smtpd(wired: tuple[Postfix, Policyd]) -> None:
    """The optional pair counts what sendmail(1) takes; over the limit it waits in Postfix's queue."""
    postfix, policyd = wired
    used = policyd.used("client:127.0.0.1", "messages", "1h")
    for _ in range(3 - used):
        assert postfix.sendmail("app@example.org", "bob@remote.test") == ""
    wait_for(lambda: policyd.used("client:127.0.0.1", "messages", "1h") == 3, lambda: postfix.log)
    assert postfix.sendmail("app@example.org", "late@remote.test") == ""
    deferred = postfix.wait_for_log(r"to=<late@remote\.test>.* status=deferred \(.*")
    assert "Sending limit reached; 3 of 3 messages per hour" in deferred[0]
    assert postfix.complaints() == []


def test_sendmail_can_be_closed_to_a_user() -> None:
    """The first remedy of the README, tried on the user that runs the tests, and its words."""
    (setting,) = re.findall(r"`(authorized_submit_users = .*?)`", contrib("README.md"))
    postfix = Postfix(f"{setting}\n".replace("www-data", "root"), stock_master_cf())
    try:
        complaint = postfix.sendmail("app@example.org", "bob@remote.test")
    finally:
        postfix.remove()
    promised = re.search(r"\"(User .*?)\"", contrib("README.md"))
    assert promised
    assert promised[1].replace("www-data(33)", "root(0)") in complaint


def test_the_stock_file_has_what_is_switched_on() -> None:
    """The harness itself: switching on an entry that is not there is an error, not a test of nothing."""
    with pytest.raises(AssertionError, match="no entry"):
        switched_on(stock_master_cf(), "smtps")
