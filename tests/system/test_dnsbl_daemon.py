"""A running policyd with real lists, behind a real Postfix: what a listed client reads, and what the admin does at night."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.daemon import Policyd
from tests.system.postfix import SOCKET, Postfix, contrib, stock_master_cf
from tests.system.rbldnsd import Rbldnsd
from tests.system.waiting import wait_for

POLICY = """
[site]
domains = ["example.org"]
default_domain = "example.org"
[server]
listen = ["unix:{socket}"]
[dns]
nameservers = ["{nameserver}"]
[[check]]
use = "allow"
[[check]]
use = "bans"
[[check]]
use = "dnsbl"
for = "mx"
sites = ["abcdef.zen.dq.spamhaus.net=127.0.0.[2..11]*3", "other.example*2"]
threshold = 3
txt = true
"""
KEYED, OTHER = "abcdef.zen.dq.spamhaus.net", "other.example"
SOUND = ":127.0.0.4:Listed, see https://example.net/$\n127.0.0.2\n192.0.2.66\n"
WORLD = "0.0.0.0/1 :127.0.0.2:\n128.0.0.0/1 :127.0.0.2:\n"
REMOTE = "bob@remote.test"


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rbldnsd]:
    datasets = {
        KEYED: [("ip4trie", SOUND), ("ip6trie", ":127.0.0.4:v6 $\n2001:db8:66::/48\n")],
        OTHER: [("ip4trie", "127.0.0.2\n")],
    }
    with Rbldnsd(tmp_path_factory.mktemp("rbldnsd"), datasets) as server:
        yield server


@pytest.fixture(scope="module")
def postfix() -> Iterator[Postfix]:
    main_cf = contrib("main.cf") + "\nsmtpd_authorized_xclient_hosts = 127.0.0.1\n"
    with Postfix(main_cf, stock_master_cf() + contrib("master.cf")) as postfix:
        yield postfix


@pytest.fixture
def policyd(postfix: Postfix, lists: Rbldnsd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policyd]:
    policy = POLICY.format(socket=postfix.queue / SOCKET, nameserver=lists.nameserver)
    with Policyd(tmp_path_factory.mktemp("policyd"), policy) as policyd:
        yield policyd


def reply(postfix: Postfix, address: str) -> str:
    """What a client at ``address`` is told at RCPT, or at the end of its message."""
    with postfix.connect() as client:
        code, text = client.smtp.docmd("XCLIENT", f"ADDR={address} NAME=[UNAVAILABLE]")
        assert code == 220, text
        client.smtp.ehlo("mail.remote.test")
        return client.send(REMOTE, "alice@example.org")


def state(policyd: Policyd, name: str) -> str:
    (found,) = [each for each in policyd.ctl_json("dnsbl", "list") if each["list"] == name]
    return str(found["state"])


def test_a_listed_client_reads_why_and_a_clean_one_delivers(postfix: Postfix, policyd: Policyd) -> None:
    """The documented text with the list's public name and its own words, IPv4 and IPv6; the key nowhere."""
    told = reply(postfix, "192.0.2.66")
    assert told.startswith(
        "550 5.7.1 <alice@example.org>: Recipient address rejected: Service unavailable; client [192.0.2.66] "
        "blocked using zen.dq.spamhaus.net; Listed, see https://example.net/192.0.2.66. ref "
    )
    assert reply(postfix, "192.0.2.7").startswith("250 2.0.0 Ok")
    # Postfix here speaks IPv4 alone.
    six = policyd.ctl("ask", "client=2001:db8:66::25", f"sender={REMOTE}", "recipient=alice@example.org")
    assert "client [2001:db8:66::25] blocked using zen.dq.spamhaus.net; v6 2001:db8:66::25. ref " in six
    six = policyd.ctl("ask", "client=2001:db8:67::25", f"sender={REMOTE}", "recipient=alice@example.org")
    assert "action=DUNNO" in six
    ref = told.rpartition("ref ")[2]
    explained = policyd.ctl("explain", ref)
    assert "score 3: zen.dq.spamhaus.net 127.0.0.4 +3" in explained
    everywhere = (
        explained + told + policyd.told() + policyd.decisions.read_text() + policyd.ctl("dnsbl", "list")
    )
    assert "abcdef" not in everywhere


def test_a_list_is_taken_out_and_put_back_at_once(postfix: Postfix, policyd: Policyd) -> None:
    """`policyctl dnsbl off` holds from the next mail on, though the score is remembered; so does `on`."""
    assert reply(postfix, "192.0.2.66").startswith("550 5.7.1")
    policyd.ctl("dnsbl", "off", "zen.dq.spamhaus.net", "--for", "24h", "--reason", "test")
    assert reply(postfix, "192.0.2.66").startswith("250 2.0.0 Ok")
    assert state(policyd, "zen.dq.spamhaus.net") == "off"
    policyd.ctl("dnsbl", "on", "zen.dq.spamhaus.net")
    assert reply(postfix, "192.0.2.66").startswith("550 5.7.1")


def test_the_daemons_figures_reach_policyctl(postfix: Postfix, policyd: Policyd) -> None:
    """Within seconds, through the database: health, hits, and those that no other list had."""
    reply(postfix, "192.0.2.66")
    reply(postfix, "192.0.2.7")

    def figures() -> dict[str, int]:
        (shown,) = policyd.ctl_json("dnsbl", "show", "zen.dq.spamhaus.net")
        return dict(shown["figures"])

    wait_for(lambda: figures().get("hits") == 1, policyd.told)
    assert figures()["alone"] == 1
    assert state(policyd, "zen.dq.spamhaus.net") == "well"


def test_a_list_that_begins_to_list_the_world_is_out_in_seconds(
    postfix: Postfix, policyd: Policyd, lists: Rbldnsd
) -> None:
    """Told on stderr, shown by policyctl, and no mail is refused by it once it is noticed."""
    assert reply(postfix, "192.0.2.66").startswith("550 5.7.1")
    try:
        lists.change(KEYED, "ip4trie", WORLD, "7.2.0.192", "127.0.0.2")
        # The listed one is asked about anew every ten seconds, and with it a random address.
        wait_for(lambda: reply(postfix, "192.0.2.66").startswith("250"), policyd.told)
        policyd.wait_told(r"dnsbl-sick: zen\.dq\.spamhaus\.net: lists 127\.")
        for number in range(20):
            assert reply(postfix, f"198.51.100.{number}").startswith("250")
        wait_for(lambda: state(policyd, "zen.dq.spamhaus.net") == "sick", policyd.told)
    finally:
        lists.change(KEYED, "ip4trie", SOUND, "7.2.0.192", "")


def test_a_reload_keeps_what_is_known_and_tests_new_lists(
    postfix: Postfix, policyd: Policyd, lists: Rbldnsd
) -> None:
    """A list that comes with the new configuration counts; a malformed one is refused with its place."""
    policy = POLICY.format(socket=postfix.queue / SOCKET, nameserver=lists.nameserver)
    policyd.reload(policy.replace(f"{OTHER}*2", f"{OTHER}=127.0.0*2"), refused=True)
    assert "the filter '127.0.0' has 3 octets" in policyd.told()
    policyd.reload(policy.replace(KEYED, OTHER).replace(f', "{OTHER}*2"', ""))
    assert reply(postfix, "192.0.2.66").startswith("250")
    policyd.reload(policy)
    assert reply(postfix, "192.0.2.66").startswith("550")
