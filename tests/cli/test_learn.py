"""policyctl learn: its counts are the log's, its judgement is policyd's own, and the same log again changes nothing."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import maillog
from policyd.accounts import LOGS_LEARNED, digest
from policyd.checks import options_of
from policyd.config import load
from policyd.errors import StoreBusy
from policyd.service import build_engine
from policyd.store import admin, clock, learned
from policyd.store.gathered import Summary
from policyd.units import DAY, HOUR, Limit
from policyd.window import Counter, slot_width
from tests.cli.place import Place
from tests.sample_database import Sample

CONFIG = """
[site]
domains = ["example.org"]
networks = ["127.0.0.0/8"]
default_domain = "example.org"

[store]
url = "sqlite:///{path}"

[tiers]
default = "new"
learned = "regular"

[tier.new]
limits = ["1 messages per 1d"]

[tier.regular]
limits = ["100 recipients per 1h"]

[tier.bulk]
limits = ["100000 recipients per 1d"]
members = ["news@example.org"]

[[check]]
use = "bans"

[[check]]
use = "quota"
for = "submission"
{quota}

[[check]]
use = "quota"
name = "whole-server"
for = "submission"
per = "server"
limits = ["150 recipients per 1h"]
mode = "shadow"

[[check]]
use = "dnsbl"
for = "mx"
sites = ["bl.example.net"]

[[detect]]
name = "address-book-run"
when = "more than 30 new recipients per user in 1h"
then = "suspend"

[[detect]]
name = "far-above"
when = "more than 3 times the usual recipients per user in 1h, at least 10"
mode = "shadow"
"""
#: 1 November 2026.
BEGINS = 1_793_491_200


class Log:
    """A log in the making."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.number = 0

    def mail(
        self, at: float, user: str, *to: str, size: int = 1000, sender: str = "", client: str = "198.51.100.7"
    ) -> None:
        """One mail, so many seconds after the beginning."""
        self.number += 1
        name = f"4Q{self.number}"
        stamp = f"@{BEGINS + int(at)}.{int(at * 1_000_000) % 1_000_000:06} mx postfix"
        login = f", sasl_method=PLAIN, sasl_username={user}" if user else ""
        self.lines += [
            f"{stamp}/smtpd[1]: {name}: client=host[{client}]{login}",
            f"{stamp}/qmgr[2]: {name}: from=<{sender or user}>, size={size}, nrcpt={len(to)} (queue active)",
            *(f"{stamp}/smtp[3]: {name}: to=<{each}>, relay=none, status=sent (ok)" for each in to),
            f"{stamp}/qmgr[2]: {name}: removed",
        ]

    def write(self, path: Path) -> str:
        path.write_text("".join(line + "\n" for line in self.lines), encoding="utf-8")
        return str(path)


def recipients(count: int, name: str = "r", domain: str = "example.com") -> list[str]:
    return [f"{name}{number}@{domain}" for number in range(count)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return made(tmp_path)


def made(directory: Path, quota: str = "") -> Place:
    return Place(directory, CONFIG.replace("{quota}", quota))


def would(told: dict[str, Any]) -> dict[tuple[str, str], dict[str, int]]:
    """How often each account was met, by name and kind."""
    return {
        (group["name"], group["what"]): {one["user"]: one["times"] for one in group["accounts"]}
        for group in told["would"]
    }


def test_counts_equal_the_logs(place: Place, tmp_path: Path) -> None:
    """A synthetic log with filters, aliases, retries and mail from outside, in two packed files given the wrong way round."""
    path = tmp_path / "mail.log"
    truth = maillog.write(path, 6000, accounts=50)
    lines = path.read_bytes().splitlines(keepends=True)
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"".join(lines[3000:])))
    (tmp_path / "b").write_bytes(b"".join(lines[:3000]))
    told = place.json("learn", str(tmp_path / "a.gz"), str(tmp_path / "b"), str(path))
    assert (told["messages"], told["recipients"], told["accounts"]) == (
        truth.messages,
        truth.recipients,
        len(truth.accounts),
    )
    assert told["lines"] == 2 * truth.lines
    assert {
        user for (user,) in place.ask("SELECT user FROM account WHERE tier = 'regular'")
    } == truth.accounts


def test_the_same_log_again_changes_nothing(place: Place, tmp_path: Path) -> None:
    """Not a row: accounts, recipients, history, the milestone."""
    log = Log()
    for day in range(3):
        log.mail(day * DAY / 1000, "alice", *recipients(3))
    path = log.write(tmp_path / "mail.log")
    tables = ("account", "correspondent", "milestone", "history", "change")
    first = place.json("learn", path, "--reason", "before we enforce")
    after = {table: place.ask(f"SELECT * FROM {table}") for table in tables}
    again = place.json("learn", path)
    assert {table: place.ask(f"SELECT * FROM {table}") for table in tables} == after
    assert (first["written"]["recipients"], again["written"]["recipients"]) == (3, 0)
    assert [row[6] for row in after["history"]] == ["1 of 1"] or after["history"][0][
        -1
    ] == "before we enforce"


def test_the_same_log_again_changes_nothing_though_a_clock_was_slewed(place: Place, tmp_path: Path) -> None:
    """Ledger time and the wall clock drift apart by milliseconds; mail of the past does not move with them."""
    log, states = Log(), []
    log.mail(0, "alice", *recipients(3))
    path = log.write(tmp_path / "mail.log")
    for apart in (700, 705, 690):
        state = (clock.boot_id(), clock.boottime(), clock.wall() - apart, clock.wall())
        place.write("INSERT OR REPLACE INTO ledger_state VALUES (1, ?, ?, ?, ?, 0, 0)", *state)
        place.json("learn", path)
        states.append(place.ask("SELECT * FROM account") + place.ask("SELECT * FROM history"))
    assert states[0] == states[1] == states[2]


def test_what_is_learned_is_there(place: Place, tmp_path: Path) -> None:
    """The tier, the first and last mail, the recipients as digests with their day, the busiest window of each day."""
    log = Log()
    log.mail(10 * HOUR / 1000, "Alice", "Bob@Example.com", "carol@example.net")
    log.mail(11 * HOUR / 1000 - 600, "alice", "bob@example.com")
    log.mail(DAY / 1000, "alice", "bob@example.com")
    place.json("learn", log.write(tmp_path / "mail.log"))
    ((tier, by, past),) = place.ask(
        "SELECT tier, tier_by, past FROM account WHERE user = 'alice@example.org'"
    )
    assert (tier, by) == ("regular", "learned")
    day = BEGINS // 86_400
    assert json.loads(past) == {f"recipients/{HOUR}": [[day, 3], [day + 1, 1]]}
    assert place.ask("SELECT user, recipient, last_day FROM correspondent ORDER BY last_day") == [
        ("alice@example.org", digest("carol@example.net"), day),
        ("alice@example.org", digest("bob@example.com"), day + 1),
    ]
    assert place.ask("SELECT name FROM milestone") == [(LOGS_LEARNED,)]


def test_a_dry_run_says_it_and_writes_nothing(place: Place, tmp_path: Path) -> None:
    """To look before anything is different."""
    log = Log()
    log.mail(1, "alice", "bob@example.com")
    told = place.json("learn", "--dry-run", log.write(tmp_path / "mail.log"))
    assert (told["dry_run"], told["written"]["tiers"], told["written"]["recipients"]) == (True, 1, 1)
    for table in ("account", "correspondent", "milestone", "history", "change"):
        assert place.ask(f"SELECT * FROM {table}") == []


@settings(max_examples=20)
@given(
    mails=st.lists(
        st.tuples(
            st.sampled_from(["alice", "bob"]), st.integers(1, 40), st.integers(0, 5), st.integers(0, 3000)
        ),
        max_size=25,
    ),
    counted_at=st.sampled_from(["", 'count_at = "rcpt"', 'count = "all"']),
)
def test_quotas_are_judged_exactly(
    mails: list[tuple[str, int, int, int]], counted_at: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What the tier's limit would have refused is what a counter of its own says; own recipients are free with external."""
    directory = tmp_path_factory.mktemp("learn")
    place, log, at = made(directory, counted_at), Log(), 0
    counters: dict[str, Counter] = defaultdict(Counter)
    refused: dict[str, int] = defaultdict(int)
    width, limit, at_rcpt = slot_width(HOUR), Limit(100, "recipients", HOUR), "rcpt" in counted_at
    for user, outside, inside, later in mails:
        at += later
        to = recipients(outside) + recipients(inside, "own", "example.org")
        log.mail(at, user, *to, sender=f"{user}@example.org")
        counter, now = counters[user], (BEGINS + at) * 1000
        counter.ask(width, now)
        counts = outside + inside if "all" in counted_at else outside
        for amount in [1] * outside if at_rcpt else [counts]:
            if counter.used(HOUR, now) + amount <= limit.amount:
                counter.charge((width,), amount, now)
            else:
                refused[f"{user}@example.org"] += 1
    log.mail(at, "carol", "carol@example.org")
    told = place.json("learn", "--dry-run", log.write(directory / "mail.log"))
    # A suspended account is refused before its quota is asked: of those nothing is compared.
    suspended = would(told).get(("address-book-run", "suspend"), {})
    judged = would(told).get(("quota", "refuse"), {})
    for user in {*refused, *judged} - suspended.keys():
        assert judged.get(user, 0) == refused[user]


def test_a_hijacking_in_the_log_is_found_by_the_detectors(place: Place, tmp_path: Path) -> None:
    """An address-book run after weeks of ordinary mail: suspended once, with its number, and refused for the time of that."""
    log = Log()
    for day in range(20):
        log.mail(day * 86_400, "alice", *recipients(4))
        log.mail(day * 86_400 + 60, "bob", *recipients(60, "customer"))
    for number in range(6):
        log.mail(19.5 * 86_400 + number * 60, "alice", *recipients(8, f"stranger{number}."))
    told = place.json("learn", log.write(tmp_path / "mail.log"))
    found = would(told)
    assert found["address-book-run", "suspend"] == {"alice@example.org": 1}
    # 8, 16, 24: more than 30 with the fourth; the two after it are refused.
    assert found["bans", "refuse"] == {"alice@example.org": 2}
    assert found["far-above", "alert"] == {"alice@example.org": 1}
    assert (
        "more than 30 in 1h"
        in next(g for g in told["would"] if g["name"] == "address-book-run")["accounts"][0]["reason"]
    )
    assert place.ask("SELECT * FROM suspension") == []
    shown = place.ran("learn", log.write(tmp_path / "mail.log"))
    assert "address-book-run, suspended:" in shown.stdout
    assert "not judged, for a log does not tell: dnsbl" in shown.stdout
    assert shown.stderr == ""


def test_own_limits_and_tiers_by_hand_hold_in_the_judgement(place: Place, tmp_path: Path) -> None:
    """The present policy is the configuration with what policyctl has set."""
    place.write(
        "INSERT INTO account VALUES ('carol@example.org', 'bulk', 'hand', 1, 0, 0, 0, 0, 0, '[]', '', '{}', '{}')"
    )
    place.run("quota", "set", "bob", "5 recipients per 1h", "--force")
    log = Log()
    for user in ("alice", "bob", "carol"):
        for number in range(4):
            log.mail(number, user, *recipients(30))
    told = place.json("learn", "--dry-run", log.write(tmp_path / "mail.log"))
    assert would(told)["quota", "refuse"] == {"alice@example.org": 1, "bob@example.org": 4}
    assert sum(would(told)["whole-server", "refuse"].values()) == 5
    limits = {(row["tier"], row["unit"], row["window"]): row for row in told["limits"]}
    assert limits["bulk", "recipients", "1h"]["peak"] == 120
    assert limits["regular", "recipients", "1h"]["suggested"] == "180 recipients per 1h"


def test_mail_of_own_networks_counts_for_the_server_and_is_no_login(place: Place, tmp_path: Path) -> None:
    """An application on this machine: no account is made of it."""
    log = Log()
    log.mail(0, "", *recipients(160), sender="app@example.org", client="127.0.0.1")
    told = place.json("learn", log.write(tmp_path / "mail.log"))
    assert sum(would(told)["whole-server", "refuse"].values()) == 1
    assert place.ask("SELECT count(*) FROM account") == [(0,)]


def test_root_reads_logs_that_the_owner_of_the_database_may_not(tmp_path: Path) -> None:
    """/var/log/mail.log is root's, the database policyd's, as whom root works on it."""
    log = Log()
    log.mail(0, "alice", "bob@example.com")
    path = Path(log.write(tmp_path / "mail.log"))
    path.chmod(0o600)
    # What Python loads only now it could not read as another user, if it lies in root's home.
    made(tmp_path).json("learn", "--dry-run", str(path))
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        home = Path(name) / "home"
        home.mkdir()
        theirs = made(home)
        if os.geteuid() == 0:
            for each in (home, *home.glob("policyd.db*")):
                os.chown(each, 65534, 65534)
        assert theirs.json("learn", str(path))["written"]["tiers"] == 1
        assert len({each.stat().st_uid for each in home.glob("policyd.db*")}) == 1


def test_the_journal_is_learned_from(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--journal alone, and what journalctl itself complains of."""
    log = Log()
    log.mail(0, "alice", "bob@example.com")
    script = tmp_path / "journalctl"
    script.write_text(f"#!/bin/sh\nexec cat {log.write(tmp_path / 'mail.log')}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert place.json("learn", "--journal")["messages"] == 1
    assert [row["subject"] for row in place.json("history")] == ["the journal"]
    script.write_text("#!/bin/sh\necho 'no rights' >&2\nexit 1\n")
    assert "journalctl failed: no rights" in place.ran("learn", "--journal").stderr


def test_a_run_that_is_cut_off_does_no_harm_and_the_next_one_adds_the_rest(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said; the milestone on which detectors rely is set by the last step alone."""
    log = Log()
    for number in range(5):
        log.mail(number, f"u{number}", "bob@example.com")
    path = log.write(tmp_path / "mail.log")
    whole = learned.write_accounts

    def busy(change: admin.Change, summaries: Sequence[Summary], *rest: Any) -> None:
        whole(change, summaries, *rest)
        raise StoreBusy("the database is locked")

    with monkeypatch.context() as patched:
        patched.setattr(learned, "write_accounts", busy)
        result = place.ran("learn", path)
    assert (result.exit_code, "run it again for the rest" in result.stderr) == (1, True)
    assert place.ask("SELECT count(*) FROM correspondent") == [(5,)]
    assert place.ask("SELECT * FROM account") + place.ask("SELECT * FROM milestone") == []
    assert place.json("learn", path)["written"]["tiers"] == 5
    assert place.ask("SELECT count(*) FROM milestone") == [(1,)]


def test_a_running_daemon_goes_by_what_was_learned_from_the_next_request_on(
    place: Place, tmp_path: Path
) -> None:
    """The tier, and whom an account has written to: what the daemon had in memory of both counts no more."""
    daemon = Sample(place.database, engine=build_engine(load(str(place.config), options_of)))
    verdicts = [daemon.ask().settled.verdict for _ in range(2)]
    assert verdicts == ["pass", "refuse"], "one message a day in the tier new"
    log, known = Log(), recipients(40, "known")
    log.mail(0, "alice", *known)
    place.json("learn", log.write(tmp_path / "mail.log"))

    def send(instance: str, to: list[str]) -> str:
        for recipient in to:
            asked = daemon.ask(
                protocol_state="RCPT", instance=instance, recipient=recipient, recipient_count="0"
            )
            assert asked.settled.verdict == "pass"
        return str(daemon.ask(instance=instance, recipient="", recipient_count=str(len(to))).settled.answer)

    assert send("1", known) == "DUNNO"
    assert send("2", recipients(31, "stranger")).startswith("550 5.7.1 Sending suspended")
    daemon.close()


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        ([], "name Postfix's logs", 2),
        (["/nonexistent/mail.log"], "/nonexistent/mail.log: No such file", 1),
        (["{path}"], "does not look like a mail log", 1),
        (["{empty}"], "not one mail that an account sent", 1),
    ],
)
def test_what_cannot_be_learned_is_one_line(
    place: Place, tmp_path: Path, words: list[str], said: str, code: int
) -> None:
    """With the place and what to do, and nothing is written."""
    (tmp_path / "odd").write_text("no log\n")
    (tmp_path / "empty").write_text("Nov 28 11:20:32 mx postfix/smtpd[1]: connect from a[1.2.3.4]\n")
    result = place.ran(
        "learn", *(word.format(path=tmp_path / "odd", empty=tmp_path / "empty") for word in words)
    )
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert place.ask("SELECT * FROM milestone") == []


def test_hostile_text_of_a_log_is_escaped_on_a_terminal(place: Place, tmp_path: Path) -> None:
    """A login with control characters in it."""
    log = Log()
    for number in range(4):
        log.mail(number, "al\x1b[31mice", *recipients(40))
    result = place.ran("learn", log.write(tmp_path / "mail.log"))
    assert "\x1b" not in result.stdout
    assert "al\\x1b[31mice" in result.stdout
    assert "less than a week" in result.stderr
