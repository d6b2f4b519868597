"""What an admin says of accounts: tiers, notes, suspensions and their end, and all that is known of one on a screen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.cli import user_show
from policyd.units import DAY
from tests.cli.place import CONFIG, Place
from tests.sample_database import Sample

ALICE = "alice@example.org"
TIERS = """
[tier.regular]
limits = ["200 recipients per 1h"]

[tier.verified]
limits = ["400 recipients per 1h"]

[[check]]
use = "allow"
"""
LIFE = (
    CONFIG.replace(
        '[tier.new]\nlimits = ["20 recipients per 1h"]\n',
        '[tier.new]\nlimits = ["20 recipients per 1h"]\npromote = {{ to = "regular", after = "14d", min_messages = 3 }}\n',
    ).replace('\n[[check]]\nuse = "allow"\n', TIERS)
    + """
[[detect]]
name = "hijacked"
when = "more than 8 client networks per user in 10m"
then = "suspend"

[suspend]
never = ["ceo@example.org"]
"""
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, LIFE)


@pytest.fixture
def sample(tmp_path: Path, place: Place) -> Iterator[Sample]:
    """A daemon's ledger on the same database, with the policy of the place."""
    from policyd.checks import options_of
    from policyd.config import load
    from policyd.service import build_engine

    sample = Sample(tmp_path / "policyd.db", engine=build_engine(load(place.config, options_of)))
    yield sample
    sample.close()


def suspended(place: Place, reason: str = "9 client networks, more than 8 in 10m", expires: int = 0) -> None:
    """A suspension as a detector writes it, by hand for what needs no daemon."""
    evidence = json.dumps({"values": ["192.0.2.0/24", "evil\x1b[31m"], "decisions": []})
    place.write(
        "INSERT INTO suspension VALUES (?, 'hijacked', ?, ?, 1, '7F3K2', 'policyd', 1, ?)",
        ALICE,
        reason,
        evidence,
        expires,
    )


def does(place: Place, *words: str) -> str:
    result = place.run(*words)
    assert result.exit_code == 0, result.output
    return result.output


# --- tiers and notes --------------------------------------------------------------------------------------------------


def test_a_verified_account_has_the_limits_of_its_tier(place: Place) -> None:
    """By hand over what the configuration says; the daemon is told, and `auto` takes it back."""
    assert "tier verified, by hand (before: new)" in does(
        place, "user", "verify", "Alice", "--reason", "known"
    )
    assert place.json("quota", "show", "alice")["limits"][0]["limit"] == 400
    assert place.ask("SELECT tbl, key FROM change") == [("account", f'["{ALICE}"]')]
    ((tier, by, since, messages),) = place.ask("SELECT tier, tier_by, tier_since, messages FROM account")
    assert (tier, by, messages) == ("verified", "hand", 0)
    assert since > 0
    assert "tier new, the default" in does(place, "user", "tier", "alice", "auto")
    assert place.json("quota", "show", "alice")["limits"][0]["limit"] == 20
    assert [row[0] for row in place.ask("SELECT action FROM history")] == ["user verify", "user tier"]


def test_a_tier_by_hand_beats_membership(place: Place) -> None:
    """What the admin said last holds over the members of the configuration."""
    does(place, "user", "tier", "news@example.org", "verified", "--force")
    shown = place.json("user", "show", "news@example.org")
    assert (shown["tier"], shown["tier_by"]) == ("verified", "hand")
    does(place, "user", "tier", "news@example.org", "auto")
    assert place.json("user", "show", "news@example.org")["tier_by"] == "configuration"


def test_a_tier_that_is_not_there(place: Place) -> None:
    """A mistyped tier is an error that proposes the right one, and changes nothing."""
    before = place.ask("SELECT * FROM account")
    result = place.ran("user", "tier", "alice", "verifid")
    assert (result.exit_code, result.stderr.count("did you mean verified?")) == (3, 1)
    place.config.write_text(place.config.read_text().replace("tier.verified", "tier.known"))
    result = place.ran("user", "verify", "alice")
    assert result.exit_code == 3
    assert "has no tier 'verified'" in result.stderr
    assert "--tier names the one" in result.stderr
    assert "tier known, by hand" in does(place, "user", "verify", "alice", "--tier", "known", "--dry-run")
    assert place.ask("SELECT * FROM account") == before


@pytest.mark.parametrize(
    "words",
    [
        ("user", "verify", "alcie"),
        ("user", "show", "alcie"),
        ("user", "note", "alcie", "x"),
        ("suspend", "alcie"),
    ],
)
def test_a_mistyped_account(place: Place, words: tuple[str, ...]) -> None:
    """A name that nobody has is a mistake, with a proposal, and nothing is changed."""
    result = place.ran(*words)
    assert result.exit_code == 3
    assert f"did you mean {ALICE}?" in result.stderr
    assert place.ask("SELECT * FROM account") == []


def test_several_are_verified_or_none(place: Place) -> None:
    """One wrong name in a list, and nobody is verified."""
    assert place.run("user", "verify", "alice", "nobody@example.org").exit_code == 3
    assert place.ask("SELECT * FROM account") == []
    result = place.run("user", "verify", "-", stdin=f"{ALICE}\nbob@example.org # new\n", env={})
    assert result.exit_code == 3
    result = place.run("user", "verify", "-", "--force", stdin=f"{ALICE}\nbob@example.org # new\n")
    assert result.exit_code == 0, result.output
    assert place.ask("SELECT user FROM account") == [(ALICE,), ("bob@example.org",)]


def test_a_note_is_kept_and_shown(place: Place) -> None:
    """A note replaces the one before, both stand in the history, and it can be read and taken away."""
    does(place, "user", "note", "alice", "called", "back")
    assert does(place, "user", "note", "alice") == "called back\n"
    assert "(before: called back)" in does(place, "user", "note", "alice", "moved")
    assert place.json("user", "show", "alice")["note"] == "moved"
    does(place, "user", "note", "alice", "--clear")
    assert "no note" in does(place, "user", "note", "alice")
    assert place.run("user", "note", "alice", "a\nb").exit_code == 2
    assert place.run("user", "note", "alice", "x", "--clear").exit_code == 2


# --- list -------------------------------------------------------------------------------------------------------------


def test_lists_by_filter_and_in_order(place: Place) -> None:
    """Each filter leaves in what it says; members of the configuration are there before they send."""
    for at, name in enumerate(("carol", "bob", "dave")):
        does(place, "user", "tier", f"{name}@example.org", "verified" if at else "regular", "--force")
        place.write(
            "UPDATE account SET last_at = ?, messages = ? WHERE user = ?",
            place.ask("SELECT tier_since FROM account")[0][0] - at * DAY,
            at,
            f"{name}@example.org",
        )
    does(place, "suspend", "bob")

    def names(*words: str) -> list[str]:
        return [row["user"].partition("@")[0] for row in place.json("user", "list", *words)]

    assert names() == ["bob", "carol", "dave", "news"]
    assert names("--tier", "verified") == ["bob", "dave"]
    assert names("--tier", "bulk") == ["news"]
    assert names("--suspended") == ["bob"]
    assert names("--seen-since", "12h") == ["carol"]
    assert names("--like", "AV") == ["dave"]
    assert names("--sort", "seen")[:3] == ["carol", "bob", "dave"]
    assert names("--sort", "messages")[0] == "dave"
    result = place.ran("user", "list", "-n", "2")
    assert "more than 2" in result.stderr
    assert place.run("user", "list", "--tier", "verifid").exit_code == 3


# --- suspended and released -------------------------------------------------------------------------------------------


def test_suspended_and_released_by_hand_within_one_session(place: Place, sample: Sample) -> None:
    """A ledger that has the database open refuses from the next request on, and lets pass from the next one after the release."""

    def sends() -> str:
        sample.ledger.begin()
        sample.ledger.rollback()
        return sample.ask().settled.verdict

    assert sends() == "pass"
    does(place, "suspend", "alice", "--for", "1h", "--reason", "complaint")
    assert sends() == "refuse"
    does(place, "release", "alice", "--note", "new password", "--password-changed")
    assert sends() == "pass"
    row = place.ask("SELECT strikes, probation_until, tier FROM account WHERE user = ?", ALICE)[0]
    assert len(json.loads(row[0])) == 1
    assert place.json("user", "show", "alice")["tier_by"] == "probation"
    events = place.ask("SELECT kind, subject, resolved, facts FROM event WHERE kind = 'suspend'")
    assert [(kind, subject, resolved) for kind, subject, resolved, _ in events] == [
        ("suspend", ALICE, 0),
        ("suspend", ALICE, 1),
    ]
    facts = json.loads(events[1][3])
    assert (facts["by"], facts["how"], facts["note"], facts["password"]) == (
        "root",
        "released",
        "new password",
        "changed",
    )
    assert [row[0] for row in place.ask("SELECT action FROM history")] == ["suspend", "release"]


def test_what_a_detector_suspends_is_explained_and_released(place: Place, sample: Sample) -> None:
    """The refusal's reference leads to detector, sentence, values and decisions; after the release what was seen is forgotten."""
    for at in range(9):
        last = sample.ask(client_address=f"198.51.{at}.7")
    assert last.settled.verdict == "refuse"
    explained = place.json("explain", str(last.settled.ref))["suspension"]
    assert (explained["detector"], explained["in_force"], explained["step"]) == ("hijacked", True, 1)
    assert explained["when"] == "more than 8 client networks per user in 10m"
    assert len(explained["values"]) == 9
    assert [row["client"] for row in explained["decided"]] == [f"198.51.{at}.7" for at in range(9)]
    later = sample.ask(client_address="198.51.100.7")
    text = does(place, "explain", str(later.settled.ref))
    assert "more than 8 client networks per user in 10m" in text
    assert f"policyctl release {ALICE} --note TEXT" in text
    why = place.json("why", "alice")
    assert (why["can_send"], why["suspension"]["detector"]) == (False, "hijacked")
    assert why["can_send_at"] is not None
    assert why["helps"][0] == f"policyctl release {ALICE} --note TEXT"
    does(place, "release", "alice", "--note", "x", "--password-unchanged", "--forgive")
    sample.ledger.begin()
    sample.ledger.rollback()
    assert sample.ask(client_address="198.51.200.7").settled.verdict == "pass"
    assert place.ask("SELECT strikes FROM account") == [("[]",)]
    over = place.json("explain", str(last.settled.ref))["suspension"]
    assert (over["in_force"], over["detector"], len(over["decided"])) == (False, "hijacked", 9)


def test_a_release_needs_an_answer(place: Place) -> None:
    """Whether the password was changed cannot be left open: a script must say it, and a note, too."""
    suspended(place)
    before = place.everything()
    result = place.ran("release", "alice", "--note", "x")
    assert result.exit_code == 2
    assert "--password-changed" in result.stderr
    assert place.ran("release", "alice", "--password-changed").exit_code == 2
    assert place.ran("release", "alice", "--note", " ", "--password-changed").exit_code == 2
    assert place.run("release", "alice", "--note", "x", "--password-changed", "--dry-run").exit_code == 0
    assert place.everything() == before
    assert place.ask("SELECT count(*) FROM suspension") == [(1,)]


@pytest.mark.parametrize(("answers", "code"), [("y\n", 0), ("n\ny\n", 0), ("n\nn\n", 1)])
def test_a_release_asks_on_a_terminal(
    place: Place, monkeypatch: pytest.MonkeyPatch, answers: str, code: int
) -> None:
    """With the old password it takes a second yes."""
    from policyd.cli import suspend

    suspended(place)
    monkeypatch.setattr(suspend, "_somebody_types", lambda: True)
    result = place.run("release", "alice", "--note", "x", stdin=answers)
    assert result.exit_code == code, result.output
    assert "Was its password changed?" in result.output
    assert len(place.ask("SELECT * FROM suspension")) == (1 if code else 0)


def test_who_is_not_suspended_cannot_be_released(place: Place) -> None:
    """The error says what is the case instead: banned, never seen, or nothing."""
    words = ("--note", "x", "--password-changed")
    assert "is not suspended" in place.ran("release", "alice", *words).stderr
    does(place, "ban", "user", "alice")
    assert "policyctl unban user" in place.ran("release", "alice", *words).stderr
    assert "did you mean" in place.ran("release", "alcie", *words).stderr


def test_who_must_not_be_suspended(place: Place) -> None:
    """[suspend] never holds for the admin's own command, too."""
    result = place.ran("suspend", "ceo@example.org", "--force")
    assert result.exit_code == 1
    assert "never of [suspend]" in result.stderr


def test_suspensions_stand_among_the_bans(place: Place) -> None:
    """Listed with their kind, by themselves and with all; lifting a ban says what ends a suspension."""
    suspended(place)
    does(place, "ban", "client", "198.51.100.7")
    assert [(row["kind"], row["value"]) for row in place.json("bans")] == [
        ("client", "198.51.100.7"),
        ("suspended", ALICE),
    ]
    assert [row["kind"] for row in place.json("bans", "suspended")] == ["suspended"]
    assert [row["kind"] for row in place.json("bans", "client")] == ["client"]
    for words in (("unban", "user", "alice"), ("ban", "show", "user", "alice")):
        result = place.ran(*words)
        assert result.exit_code == 3
        assert f"policyctl release {ALICE} --note TEXT" in result.stderr
    does(place, "ban", "user", "alice")
    assert f"policyctl release {ALICE}" in place.ran("unban", "user", "alice").stderr
    assert "suspended: alice@example.org" in place.run("status").output


# --- one screen -------------------------------------------------------------------------------------------------------


def test_all_of_an_account_on_one_screen(place: Place, sample: Sample) -> None:
    """Tier, outlook, limits as bars, strikes, grants, note, networks, senders, decisions and commands; programs get the same."""
    for at in range(4):
        sample.ask(client_address=f"192.0.{at % 2}.7", recipient_count="5")
    does(place, "user", "note", "alice", "x")
    does(place, "grant", "alice", "10", "recipients", "--for", "1h")
    text = does(place, "user", "show", "alice")
    assert "tier        new, the default" in text
    assert "outlook     regular from" in text
    assert "20 of 30, room for 10" in text
    assert "192.0.1.0/24" in text
    assert "policyctl grant rm 1" in text
    shown = place.json("user", "show", "alice")
    assert [each["requests"] for each in shown["networks"]] == [2, 2]
    assert shown["senders"][0]["value"] == ALICE
    assert shown["messages_in_tier"] == 4
    assert len(shown["decisions"]) == 4
    assert shown["limits"][0]["room"] == 10


def test_a_suspended_account_on_its_screen(place: Place) -> None:
    """Reason, evidence and the way out stand there; what came from outside is escaped."""
    suspended(place)
    text = does(place, "user", "show", "alice")
    assert "SUSPENDED" in text
    assert "9 client networks" in text
    assert "192.0.2.0/24" in text
    assert "\x1b[31m" not in text
    assert f"policyctl release {ALICE} --note TEXT" in text
    assert place.json("user", "show", "alice")["suspension"]["values"][0] == "192.0.2.0/24"


@pytest.mark.parametrize(
    ("used", "allowed", "drawn"), [(0, 10, 0), (1, 1000, 1), (5, 10, 12), (99, 10, 24), (0, 0, 24)]
)
def test_bars(monkeypatch: pytest.MonkeyPatch, used: int, allowed: int, drawn: int) -> None:
    """What is used shows from the first message on; no bar is longer than the screen; ASCII where blocks cannot be shown."""
    monkeypatch.setattr(user_show, "_shows_blocks", lambda: False)
    assert user_show.bar(used, allowed) == "#" * drawn + "." * (user_show.WIDTH - drawn)
    monkeypatch.setattr(user_show, "_shows_blocks", lambda: True)
    assert user_show.bar(used, allowed).count("█") == drawn


def test_damaged_evidence_is_no_traceback(place: Place) -> None:
    """A row that somebody wrote by hand ends in text, or in one line."""
    suspended(place)
    place.write("UPDATE suspension SET evidence = '[1'")
    assert place.run("user", "show", "alice").exit_code == 0
    place.write(
        "INSERT INTO account VALUES (?, '', '', 0, 0, 0, 0, 0, 0, 'x', '', '{}', '{}')",
        ALICE,
    )
    result = place.ran("user", "show", "alice")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
