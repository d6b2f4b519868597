"""A real Postfix, policyd and a nameserver of the tests' own: what a listed, forged, strange or borrowed sender is told.

Clients get their addresses by XCLIENT. Postfix itself asks no nameserver; what is accepted is kept as it was delivered.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from email.parser import BytesParser
from threading import Event

import pytest

from tests.dns.server import DnsServer
from tests.system.daemon import Policyd
from tests.system.postfix import SOCKET, Postfix, contrib, queue_id, stock_master_cf
from tests.system.waiting import wait_for

POLICY = """
[site]
domains = ["example.org"]
default_domain = "example.org"
[server]
listen = ["unix:{socket}"]
[dns]
nameservers = ["{nameserver}"]
timeout = "1s"
[[check]]
use = "allow"
[[check]]
use = "bans"
[[check]]
use = "sender_login"
for = "submission"
[[check]]
use = "dnsbl"
for = "mx"
sites = ["bl.test=127.0.0.[2..11]*3", "weak.test*1"]
threshold = 3
[[check]]
use = "dnsbl"
name = "sender-domain"
for = "mx"
lookup = "sender"
sites = ["dbl.test"]
[[check]]
use = "spf"
for = "mx"
receiver = "mx.example.org"
[[check]]
use = "greylist"
for = "mx"
when = ["spf = softfail"]
delay = "2s"
"""

# Each recipient has a copy of its own. The program begins in the queue directory.
CAPTURE = """
capture unix - n n - - pipe
  flags=R user=nobody argv=/usr/bin/tee ../delivered/${queue_id}.${user}
"""
MAIN_CF = """
smtpd_authorized_xclient_hosts = 127.0.0.1
transport_maps = inline:{ { example.org = capture: } }
capture_destination_recipient_limit = 1
"""

LISTED, PERMITTED = "192.0.2.66", "192.0.2.25"
ALICE, BOB = "alice@example.org", "bob@example.org"
REF = r"ref ([0-9A-HJKMNP-TV-Z]+)"


@pytest.fixture(scope="module")
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        for zone in ("bl.test", "weak.test"):
            server.add(f"2.0.0.127.{zone}", "A", "127.0.0.2")
        server.add("66.2.0.192.bl.test", "A", "127.0.0.4")
        server.add("67.2.0.192.weak.test", "A", "127.0.0.2")
        server.add("test.dbl.test", "A", "127.0.0.2")
        server.add("listed.test.dbl.test", "A", "127.0.0.2")
        server.add("strict.test", "TXT", f"v=spf1 ip4:{PERMITTED} -all")
        server.add("soft.test", "TXT", f"v=spf1 ip4:{PERMITTED} ~all")
        yield server


@pytest.fixture(scope="module")
def postfix() -> Iterator[Postfix]:
    postfix = Postfix(contrib("main.cf") + MAIN_CF, stock_master_cf() + contrib("master.cf") + CAPTURE)
    delivered = postfix.directory / "delivered"
    delivered.mkdir()
    shutil.chown(delivered, "nobody")
    with postfix:
        yield postfix


@pytest.fixture(scope="module")
def policyd(postfix: Postfix, dns: DnsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policyd]:
    policy = POLICY.format(socket=postfix.queue / SOCKET, nameserver=dns.nameserver)
    with Policyd(tmp_path_factory.mktemp("policyd"), policy) as policyd:
        wait_for(lambda: {each["state"] for each in lists(policyd)} == {"well"}, policyd.told)
        yield policyd


@pytest.fixture(autouse=True)
def _quiet(postfix: Postfix) -> Iterator[None]:
    """Whatever a test does: Postfix finds nothing to complain about, the policy service included."""
    yield
    assert postfix.complaints() == []


class Sending:
    """What a client at some address is told for its mail, in one session."""

    def __init__(self, postfix: Postfix, address: str) -> None:
        self._client = postfix.connect()
        code, text = self._client.smtp.docmd("XCLIENT", f"ADDR={address} NAME=[UNAVAILABLE]")
        assert code == 220, text
        self._client.smtp.ehlo("mail.client.test")

    def __enter__(self) -> Callable[..., str]:
        return self._client.send

    def __exit__(self, *_: object) -> None:
        self._client.smtp.close()


def send(postfix: Postfix, address: str, sender: str, *recipients: str) -> str:
    with Sending(postfix, address) as mail:
        return mail(sender, *(recipients or (ALICE,)))


def delivered(postfix: Postfix, reply: str, *users: str) -> list[Message]:
    """The copies of a message that was accepted with ``reply``, as each of ``users`` got it."""
    name = queue_id(reply)
    assert postfix.delivered([name]) == len(users)
    copies = [(postfix.directory / "delivered" / f"{name}.{user}").read_bytes() for user in users]
    return [BytesParser().parsebytes(copy) for copy in copies]


def lists(policyd: Policyd) -> list[dict[str, object]]:
    return list(policyd.ctl_json("dnsbl", "list"))


def matched(pattern: str, reply: str) -> re.Match[str]:
    found = re.fullmatch(pattern, reply)
    assert found, reply
    return found


def test_a_listed_client_is_told_the_list(postfix: Postfix, policyd: Policyd) -> None:
    """550 5.7.1 with the list's name at RCPT; explain has the sum and each list's answer."""
    refusal = matched(
        r"550 5\.7\.1 <alice@example\.org>: Recipient address rejected: Service unavailable; "
        rf"client \[192\.0\.2\.66\] blocked using bl\.test\. {REF}",
        send(postfix, LISTED, "carol@plain.test"),
    )
    explained = policyd.ctl("explain", refusal[1])
    assert "score 3: bl.test 127.0.0.4 +3" in explained
    (row,) = policyd.ctl_json("log", "--ref", refusal[1])
    assert (row["by"], row["stage"], row["verdict"]) == ("dnsbl", "RCPT", "refuse")


def test_less_than_the_threshold_refuses_nobody(postfix: Postfix, policyd: Policyd) -> None:
    """A client whom only the weak list has delivers; explain of the mail shows the score and the list, and the SPF result."""
    (mail,) = delivered(postfix, reply := send(postfix, "192.0.2.67", "carol@plain.test"), "alice")
    assert mail.get_all("Received-SPF") is not None
    explained = policyd.ctl("explain", queue_id(reply))
    assert "score 1: weak.test 127.0.0.2 +1" in explained
    assert "SPF none of MAIL FROM plain.test" in explained


def test_a_listed_sender_domain_is_told_the_list(postfix: Postfix, policyd: Policyd) -> None:
    """lookup = "sender": the domain is named, whatever the client is."""
    matched(
        r"550 5\.7\.1 <alice@example\.org>: Recipient address rejected: Service unavailable; "
        rf"sender domain \[listed\.test\] blocked using dbl\.test\. {REF}",
        send(postfix, "198.51.100.1", "carol@listed.test"),
    )


def test_a_forged_sender_is_told_so(postfix: Postfix, policyd: Policyd) -> None:
    """550 5.7.23 (RFC 7372) with the domain and the client's address; the permitted client's mail passes."""
    refusal = matched(
        r"550 5\.7\.23 <alice@example\.org>: Recipient address rejected: SPF validation failed; "
        rf"strict\.test does not permit 198\.51\.100\.2 to send its mail \(fail\)\. {REF}",
        send(postfix, "198.51.100.2", "carol@strict.test"),
    )
    assert "SPF fail of MAIL FROM strict.test by -all" in policyd.ctl("explain", refusal[1])
    queue_id(send(postfix, PERMITTED, "carol@strict.test"))


def test_received_spf_stands_once_in_what_each_recipient_gets(postfix: Postfix, policyd: Policyd) -> None:
    """Three recipients, three questions at RCPT, one header above the message's own; and again in the session's next mail."""
    with Sending(postfix, PERMITTED) as mail:
        replies = [mail("carol@strict.test", ALICE, BOB, "dave@example.org") for _ in range(2)]
    for reply in replies:
        for copy in delivered(postfix, reply, "alice", "bob", "dave"):
            (header,) = copy.get_all("Received-SPF")
            assert header == (
                f"pass receiver=mx.example.org; client-ip={PERMITTED}; "
                f'identity=mailfrom; envelope-from="carol@strict.test"; helo=mail.client.test; mechanism="ip4:{PERMITTED}"'
            )
            names = [name.lower() for name, _ in copy.items()]
            assert names.index("received-spf") < names.index("subject")


def test_a_stranger_comes_again_and_is_known_then(postfix: Postfix, policyd: Policyd) -> None:
    """450 4.2.0 at first, the mail with one X-Greylist and one Received-SPF after the delay, and no header from then on."""

    def try_again() -> str:
        return send(postfix, "198.51.100.3", "carol@soft.test", ALICE, BOB)

    told = (
        r"450 4\.2\.0 <{}@example\.org>: Recipient address rejected: Greylisted; try again in [12] seconds\. "
        + REF
    )
    refusal = matched(told.format("alice"), try_again())
    assert "greylisted: first seen" in policyd.ctl("explain", refusal[1])
    replies = []

    def passes() -> bool:
        replies.append(try_again())
        return replies[-1].startswith("250")

    wait_for(passes, lambda: repr(replies))
    for reply in replies[:-1]:
        matched(told.format("(?:alice|bob)"), reply)
    for copy in delivered(postfix, replies[-1], "alice", "bob"):
        (header,) = copy.get_all("X-Greylist")
        matched(r"delayed \d+ seconds by policyd", header)
        (spf,) = copy.get_all("Received-SPF")
        assert spf.startswith("softfail ")
    for copy in delivered(postfix, try_again(), "alice", "bob"):
        assert copy.get_all("X-Greylist") is None
        assert len(copy.get_all("Received-SPF")) == 1


def test_who_is_permitted_is_not_greylisted(postfix: Postfix, policyd: Policyd) -> None:
    """when = ["spf = softfail"] leaves ordinary mail in peace."""
    (mail,) = delivered(postfix, send(postfix, PERMITTED, "carol@soft.test"), "alice")
    assert mail.get_all("X-Greylist") is None


def test_an_exception_by_hand_lets_a_stranger_in_at_once(postfix: Postfix, policyd: Policyd) -> None:
    """`policyctl greylist allow` holds from the next try on."""
    assert send(postfix, "198.51.100.4", "dan@soft.test").startswith("450 4.2.0 ")
    policyd.ctl("greylist", "allow", "client", "198.51.100.4", "--reason", "partner")
    (mail,) = delivered(postfix, send(postfix, "198.51.100.4", "dan@soft.test"), "alice")
    assert mail.get_all("X-Greylist") is None


def test_a_list_that_is_turned_off_lets_the_listed_in_at_once(postfix: Postfix, policyd: Policyd) -> None:
    """`policyctl dnsbl off ZONE`, in an open session, though the score is remembered; `on` puts it back."""
    with Sending(postfix, LISTED) as mail:
        assert mail("carol@plain.test", ALICE).startswith("550 5.7.1 ")
        policyd.ctl("dnsbl", "off", "bl.test", "--for", "1h", "--reason", "lists a partner")
        try:
            queue_id(mail("carol@plain.test", ALICE))
        finally:
            policyd.ctl("dnsbl", "on", "bl.test")
        assert mail("carol@plain.test", ALICE).startswith("550 5.7.1 ")


def test_a_login_sends_as_itself_and_as_what_it_was_allowed(postfix: Postfix, policyd: Policyd) -> None:
    """553 5.7.1 for another's address, in an open session lifted by `policyctl sender allow`, back by `sender rm`."""
    told = (
        r"553 5\.7\.1 <x@remote\.test>: Recipient address rejected: "
        rf"Sender address is not yours; login erin@example\.org may not send as sales@example\.org\. {REF}"
    )
    with postfix.connect("submission", "erin") as client:
        queue_id(client.send("erin@example.org", "x@remote.test"))
        queue_id(client.send("erin+news@example.org", "x@remote.test"))
        refusal = matched(told, client.send("sales@example.org", "x@remote.test"))
        assert policyd.ctl_json("explain", refusal[1])["by"] == "sender_login"
        policyd.ctl("sender", "allow", "erin@example.org", "sales@example.org", "--reason", "sales desk")
        queue_id(client.send("sales@example.org", "x@remote.test"))
        assert client.send("boss@example.org", "x@remote.test").startswith("553 5.7.1 ")
        policyd.ctl("sender", "rm", "erin@example.org", "sales@example.org")
        matched(told, client.send("sales@example.org", "x@remote.test"))


@pytest.mark.parametrize("trouble", ["dies", "hangs"])
def test_mail_goes_on_while_the_resolver_does_not(
    trouble: str, postfix: Postfix, policyd: Policyd, dns: DnsServer
) -> None:
    """A resolver that dies or hangs while mail flows: nothing is refused, the mail says temperror, `policyctl status` says
    which nameserver it is; and when it is back a listed client is refused again, by itself."""
    third = {"dies": 10, "hangs": 20}[trouble]
    hosts = itertools.count(1)
    ended, replies = Event(), []

    def flow(sender: str) -> None:
        while not ended.is_set():
            replies.append(send(postfix, f"203.0.{third}.{next(hosts) % 250 + 1}", sender))

    def more(count: int) -> None:
        enough = len(replies) + count
        wait_for(lambda: len(replies) >= enough, policyd.told)

    def down() -> bool:
        told = f"no nameserver answers ({dns.nameserver}), so mail goes on without blocklists and SPF"
        return any(told in each for each in policyd.ctl_json("status")["warnings"])

    with ThreadPoolExecutor(4) as pool:
        flows = [pool.submit(flow, f"carol@{name}.test") for name in ("one", "two", "three", "four")]
        try:
            more(20)
            assert not down()
            if trouble == "dies":
                dns.stop()
            else:
                dns.behave(silent=True)
            more(20)
            wait_for(down, policyd.told)
            (copy,) = delivered(
                postfix, send(postfix, "198.51.100.5", f"carol@unseen-{trouble}.test"), "alice"
            )
            (header,) = copy.get_all("Received-SPF")
            assert header.startswith("temperror ")
        finally:
            # First of all: threads that go on for ever would make a failure a hang.
            ended.set()
            dns.stop()
            dns.start()
            dns.behave()
    for each in flows:
        each.result()
    assert [reply for reply in replies if not reply.startswith("250 ")] == []
    dns.add(f"254.{third}.0.203.bl.test", "A", "127.0.0.4")
    wait_for(
        lambda: send(postfix, f"203.0.{third}.254", "carol@plain.test").startswith("550 5.7.1 "), policyd.told
    )
    wait_for(lambda: not down(), policyd.told)
