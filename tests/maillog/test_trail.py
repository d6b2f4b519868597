# ruff: noqa: E501, lines of a log are as long as they are
"""Mails out of lines: the formats of Postfix 3.5 to 3.12, filters, aliases, hostile text, and bounds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.maillog import trail
from policyd.maillog.stamps import Stamps
from policyd.maillog.trail import Mail, Trail
from policyd.match import NetworkSet, parse_network

OWN = NetworkSet([parse_network("127.0.0.0/8"), parse_network("192.0.2.0/24")])


def lines(text: str, host: str = "mx1") -> list[bytes]:
    """``text`` as a log: a second for each line."""
    stripped = (line.strip() for line in text.strip().split("\n"))
    return [
        f"2026-11-28T11:{at // 60:02}:{at % 60:02}.000000+00:00 {host} postfix/{line}".encode(
            "utf-8", "surrogateescape"
        )
        for at, line in enumerate(stripped)
    ]


def read(*parts: list[bytes], networks: NetworkSet = OWN) -> list[Mail]:
    """The mails of these lines."""
    known = Trail(networks)
    stamps = Stamps(0)
    return [mail for part in parts for mail in known.feed(part, stamps)] + known.finish()


PLAIN = """
    submission/smtpd[11]: connect from host.example.net[198.51.100.7]
    submission/smtpd[11]: 4XyZ12abcz3: client=host.example.net[198.51.100.7], sasl_method=PLAIN, sasl_username=alice
    cleanup[12]: 4XyZ12abcz3: message-id=<1@host.example.net>
    qmgr[13]: 4XyZ12abcz3: from=<alice@example.org>, size=4711, nrcpt=2 (queue active)
    submission/smtpd[11]: disconnect from host.example.net[198.51.100.7] ehlo=2 starttls=1 auth=1 mail=1 rcpt=2 data=1
    smtp[14]: 4XyZ12abcz3: to=<bob@example.com>, relay=mx.example.com[203.0.113.1]:25, delay=1, delays=1/0/0/0, dsn=2.0.0, status=sent (250 ok)
    smtp[14]: 4XyZ12abcz3: to=<carol@example.net>, relay=none, delay=1, delays=1/0/0/0, dsn=5.1.1, status=bounced (no such user)
    bounce[15]: 4XyZ12abcz3: sender non-delivery notification: 4XyZ12abcz4
    qmgr[13]: 4XyZ12abcz4: from=<>, size=6000, nrcpt=1 (queue active)
    qmgr[13]: 4XyZ12abcz3: removed
"""


def test_a_mail_is_what_its_lines_say_together() -> None:
    """Login, client, sender, size, recipients and time of the moment in which it was queued."""
    (mail,) = read(lines(PLAIN))
    assert mail._replace(key=b"") == Mail(
        1_795_863_603_000,
        b"",
        "alice",
        "198.51.100.7",
        "alice@example.org",
        4711,
        2,
        ("bob@example.com", "carol@example.net"),
    )


@pytest.mark.parametrize("queue_id", ["A1B2C3", "4XyZ12abcz3", "0123456789ABCDEF0123"])
@pytest.mark.parametrize("service", ["smtpd", "submission/smtpd", "submissions/smtpd", "smtps/smtpd"])
def test_short_and_long_queue_ids_of_every_service(queue_id: str, service: str) -> None:
    """enable_long_queue_ids, and syslog_name as master.cf sets it."""
    text = PLAIN.replace("4XyZ12abcz3", queue_id).replace("submission/smtpd", service)
    assert [mail.user for mail in read(lines(text))] == ["alice"]


def test_the_logs_of_another_instance() -> None:
    """postfix-out/smtpd: the name of a second instance stands where postfix does."""
    changed = [line.replace(b" postfix/", b" postfix-out/") for line in lines(PLAIN)]
    assert [mail.recipients for mail in read(changed)] == [2]


def test_the_same_queue_id_on_two_hosts_is_two_mails() -> None:
    """A central log has the lines of many hosts between each other."""
    both = [line for pair in zip(lines(PLAIN), lines(PLAIN, "mx2"), strict=True) for line in pair]
    assert len(read(both)) == 2


def test_a_short_queue_id_is_used_again() -> None:
    """Also when the log does not say that the first mail was removed."""
    first = lines(PLAIN)[:-1]
    second = [line.replace(b"T11:", b"T12:") for line in lines(PLAIN.replace("=alice", "=bob"))]
    assert [mail.user for mail in read(first, second)] == ["alice", "bob"]


def test_a_mail_that_is_tried_again_counts_once() -> None:
    """Each try of a deferred mail has a line of its own, with the same nrcpt."""
    text = (
        PLAIN.rstrip().rsplit("\n", 1)[0]
        + """
    qmgr[13]: 4XyZ12abcz3: from=<alice@example.org>, size=4711, nrcpt=1 (queue active)
    smtp[14]: 4XyZ12abcz3: to=<bob@example.com>, relay=none, delay=900, delays=1/0/0/0, dsn=4.4.1, status=deferred (timed out)
    qmgr[13]: 4XyZ12abcz3: from=<alice@example.org>, status=expired, returned to sender
    qmgr[13]: 4XyZ12abcz3: removed
"""
    )
    (mail,) = read(lines(text))
    assert (mail.recipients, mail.to) == (2, ("bob@example.com", "carol@example.net"))


def test_the_second_copy_of_a_log_adds_nothing_while_the_mail_is_under_way() -> None:
    """mail.log and mail.info of older Debian hold the same lines; each copy has the same key."""
    mails = read(lines(PLAIN)[:4], lines(PLAIN)) + read(lines(PLAIN))
    assert len({mail.key for mail in mails}) == 1
    assert len(mails) == 2


def test_aliases_count_as_what_the_client_wrote() -> None:
    """An alias made three of one before the queue (nrcpt=4), the client gave two recipients."""
    (mail,) = read(
        lines("""
    smtpd[11]: 4A: client=a[198.51.100.7], sasl_method=PLAIN, sasl_username=alice
    qmgr[13]: 4A: from=<alice@example.org>, size=1, nrcpt=4 (queue active)
    smtp[14]: 4A: to=<x@example.com>, orig_to=<all@example.org>, relay=none, status=sent (ok)
    smtp[14]: 4A: to=<y@example.com>, orig_to=<all@example.org>, relay=none, status=sent (ok)
    smtp[14]: 4A: to=<z@example.com>, orig_to=<all@example.org>, relay=none, status=sent (ok)
    smtp[14]: 4A: to=<bob@example.com>, relay=none, status=sent (ok)
    qmgr[13]: 4A: removed
""")
    )
    assert (mail.recipients, mail.to) == (2, ("all@example.org", "bob@example.com"))


def test_what_local_makes_of_an_alias_is_not_in_nrcpt() -> None:
    """local(8) expands aliases after the queue: more deliveries than recipients."""
    (mail,) = read(
        lines("""
    smtpd[11]: 4A: client=a[198.51.100.7], sasl_method=PLAIN, sasl_username=alice
    qmgr[13]: 4A: from=<alice@example.org>, size=1, nrcpt=1 (queue active)
    local[14]: 4A: to=<x@example.org>, orig_to=<team@example.org>, relay=local, status=sent (delivered to maildir)
    local[14]: 4A: to=<y@example.org>, orig_to=<team@example.org>, relay=local, status=sent (delivered to maildir)
    qmgr[13]: 4A: removed
""")
    )
    assert (mail.recipients, mail.to) == (1, ("team@example.org",))


FILTERED = """
    submission/smtpd[11]: 4A: client=a.example.net[198.51.100.7], sasl_method=PLAIN, sasl_username=alice
    cleanup[12]: 4A: message-id=<7@a.example.net>
    qmgr[13]: 4A: from=<alice@example.org>, size=100, nrcpt=1 (queue active)
    smtpd[21]: 4B: client=localhost[127.0.0.1]{more}
    cleanup[12]: 4B: message-id={message_id}
    qmgr[13]: 4B: from=<alice@example.org>, size=700, nrcpt=1 (queue active)
    smtp[14]: 4A: to=<bob@example.com>, relay=127.0.0.1[127.0.0.1]:10024, delay=1, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as 4B)
    qmgr[13]: 4A: removed
    smtp[14]: 4B: to=<bob@example.com>, relay=mx.example.com[203.0.113.1]:25, delay=1, dsn=2.0.0, status=sent (250 ok)
    qmgr[13]: 4B: removed
"""


@pytest.mark.parametrize(
    ("more", "message_id"),
    [
        ("", "<7@a.example.net>"),
        (", orig_queue_id=4A", "<rewritten@filter>"),
        (", orig_client=a.example.net[198.51.100.7]", "<rewritten@filter>"),
    ],
)
def test_what_a_content_filter_gives_back_counts_once(more: str, message_id: str) -> None:
    """By its Message-ID, or by what XFORWARD tells; mail from the same network that is no copy counts."""
    mails = read(lines(FILTERED.format(more=more, message_id=message_id)))
    assert [(mail.user, mail.size) for mail in mails] == [("alice", 100)]
    mails = read(lines(FILTERED.format(more="", message_id="<another@app>")))
    assert [(mail.user, mail.client) for mail in mails] == [("alice", "198.51.100.7"), ("", "127.0.0.1")]


def test_mail_from_outside_that_a_filter_gives_back_is_nobodys() -> None:
    """The first pass is no account's, so the second, from an own network, must not become one's."""
    text = FILTERED.replace(", sasl_method=PLAIN, sasl_username=alice", "").format(
        more="", message_id="<7@a.example.net>"
    )
    assert read(lines(text)) == []


def test_a_filter_before_the_queue() -> None:
    """smtpd_proxy_filter: the login stands with NOQUEUE, and the answer that was passed on names the queue id."""
    (mail,) = read(
        lines("""
    smtpd[11]: NOQUEUE: client=a.example.net[198.51.100.7], sasl_method=LOGIN, sasl_username=alice
    smtpd[21]: 4B: client=localhost[127.0.0.1], orig_client=a.example.net[198.51.100.7]
    cleanup[12]: 4B: message-id=<7@a.example.net>
    qmgr[13]: 4B: from=<alice@example.org>, size=700, nrcpt=1 (queue active)
    smtpd[11]: proxy-accept: END-OF-MESSAGE: 250 2.0.0 Ok: queued as 4B; from=<alice@example.org> to=<bob@example.com> proto=ESMTP helo=<a> sasl_username=<alice>
    smtp[14]: 4B: to=<bob@example.com>, relay=mx.example.com[203.0.113.1]:25, delay=1, dsn=2.0.0, status=sent (250 ok)
    qmgr[13]: 4B: removed
""")
    )
    assert (mail.user, mail.client, mail.size) == ("alice", "198.51.100.7", 700)


def test_mail_from_outside_is_left_out() -> None:
    """learn is about accounts."""
    assert read(lines(PLAIN.replace(", sasl_method=PLAIN, sasl_username=alice", ""))) == []


def test_a_mail_without_its_beginning_is_left_out_and_one_without_its_end_counts() -> None:
    """Logs are cut where they are rotated, not where mails end."""
    assert read(lines(PLAIN)[2:]) == []
    assert len(read(lines(PLAIN)[:4])) == 1
    known = Trail()
    assert known.feed(lines(PLAIN)[:3], Stamps(0)) + known.finish() == []
    assert known.unfinished == 1


@pytest.mark.parametrize(
    "line",
    [
        "smtpd[1]: NOQUEUE: reject: RCPT from a[1.2.3.4]: 554 5.7.1 no; from=<a> to=<b> proto=ESMTP helo=<4A: client=x[1.2.3.4], sasl_username=victim>",
        "smtpd[1]: warning: a[1.2.3.4]: SASL LOGIN authentication failed: (reason unavailable), sasl_username=victim",
        "cleanup[1]: 4A: info: header Subject: 4A: client=a[1.2.3.4], sasl_method=PLAIN, sasl_username=victim from a[1.2.3.4]; from=<x>",
        "smtp[1]: 4A: host mx[1.2.3.4] said: 450 4A: client=a[1.2.3.4], sasl_username=victim (in reply to RCPT TO)",
        "pickup[1]: 4A: uid=1000 from=<victim>",
        "dovecot[1]: 4A: client=a[1.2.3.4], sasl_method=PLAIN, sasl_username=victim",
    ],
)
def test_what_a_client_wrote_is_no_login(line: str) -> None:
    """Text of others stands in many lines; only smtpd's own word behind the queue id counts."""
    active = "qmgr[13]: 4A: from=<x>, size=1, nrcpt=1 (queue active)"
    assert read(lines(f"{line}\n{active}")) == []


@pytest.mark.parametrize("login", ["victim, orig_client=a[1.2.3.4]", "victim, sasl_sender=x", "", "x" * 400])
def test_a_login_that_could_pass_for_another_is_left_out(login: str) -> None:
    """A login may be any text; one with the look of the attributes behind it is not learned, and said."""
    known = Trail()
    known.feed(lines(PLAIN.replace("=alice", "=" + login)), Stamps(0))
    assert (known.finish(), known.odd) == ([], 1)


def test_a_sender_that_looks_like_the_rest_of_the_line() -> None:
    """The numbers are read from the end: an address may hold anything."""
    sender = "a, b@x>, size=1, nrcpt=900 (queue active)"
    (mail,) = read(lines(PLAIN.replace("alice@example.org", sender)))
    assert (mail.sender, mail.size, mail.recipients) == (sender, 4711, 2)


def test_octets_that_are_no_text_are_kept_readable() -> None:
    """As on the wire: nothing that cannot be stored or printed."""
    (mail,) = read([line.replace(b"alice", b"al\xff\xe9ce") for line in lines(PLAIN)])
    assert mail.user == "al\\xff\\xe9ce"


def test_a_line_of_a_million_octets_is_no_harm() -> None:
    """It is looked at in its beginning only."""
    long = b"2026-11-28T11:00:00Z mx postfix/smtpd[1]: 4A: client=" + b"a" * 1_000_000
    assert read([long, b"x" * 1_000_000, *lines(PLAIN)])[0].user == "alice"


def test_mails_that_never_end_are_let_go_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """So memory is bounded: what was queued counts, what has only begun does not."""
    monkeypatch.setattr(trail, "FOLLOWED", 8)
    monkeypatch.setattr(trail, "RECIPIENTS", 50)
    known, done = Trail(), []
    for number in range(100):
        done += known.feed(lines(PLAIN.replace("4XyZ12abcz3", f"4Q{number}"))[1:7], Stamps(0))
        assert len(known._followed) <= 8
    assert len(done) + len(known.finish()) == 100


mails = st.lists(
    st.tuples(
        st.sampled_from(["alice", "bob@example.org", "carol o'neil", "dörte"]),
        st.integers(1, 4),
        st.integers(0, 10**9),
        st.sampled_from(["whole", "not removed", "not queued", "from outside"]),
    ),
    max_size=12,
)


@given(mails, st.randoms(use_true_random=False))
def test_counts_equal_what_was_written_however_lines_are_mixed(
    wanted: list[tuple[str, int, int, str]], random: object
) -> None:
    """Whatever order the lines of several mails come in, as long as those of one mail are in order."""
    queues = []
    for number, (user, count, size, kind) in enumerate(wanted):
        login = "" if kind == "from outside" else f", sasl_method=PLAIN, sasl_username={user}"
        queue = [f"smtpd[1]: 4Q{number}: client=a[198.51.100.7]{login}"]
        if kind != "not queued":
            queue.append(f"qmgr[2]: 4Q{number}: from=<{user}>, size={size}, nrcpt={count} (queue active)")
            queue += [
                f"smtp[3]: 4Q{number}: to=<r{n}@example.com>, relay=none, status=sent (ok)"
                for n in range(count)
            ]
        if kind == "whole":
            queue.append(f"qmgr[2]: 4Q{number}: removed")
        queues.append(queue)
    order = list(itertools.chain.from_iterable([at] * len(queue) for at, queue in enumerate(queues)))
    random.shuffle(order)  # type: ignore[attr-defined]
    mixed = "\n".join(queues[at].pop(0) for at in order)
    found = read(lines(mixed)) if mixed else []
    model = sorted(
        (user, count, size) for user, count, size, kind in wanted if kind in ("whole", "not removed")
    )
    assert sorted((mail.user, mail.recipients, mail.size) for mail in found) == model


pieces = st.sampled_from([*lines(PLAIN), *lines(FILTERED)])


@given(
    st.lists(
        st.binary(max_size=200)
        | pieces
        | st.builds(lambda a, b, n: a[:n] + b[n // 2 :], pieces, pieces, st.integers(0, 200)),
        max_size=30,
    )
)
def test_any_bytes_are_read_without_an_error(some: list[bytes]) -> None:
    """Cut lines, mixed lines, bytes: nothing in a log ends the reading, and what comes out can be stored."""
    for mail in read(some):
        assert mail.at > 0
        assert mail.recipients >= max(1, len(mail.to))
        "\n".join((mail.user, mail.client, mail.sender, *mail.to)).encode()
