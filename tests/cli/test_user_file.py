"""Accounts as a file: what is taken in is shown before, all or nothing, and what goes out comes in again."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.accounts import Account
from policyd.cli import import_journal, steps, user_import
from policyd.cli.common import Times
from policyd.cli.user_file import FORMATS, Reader, lines_of
from policyd.store import account_rows, admin
from policyd.store.account_rows import Known
from policyd.store.admin import Change
from policyd.store.connect import open_for_admin
from policyd.tiers import Tier, Tiers
from tests.cli.place import CONFIG, Place

ALICE = "alice@example.org"
VERIFIED = CONFIG.replace(
    '[[check]]\nuse = "allow"\n',
    '[tier.verified]\nlimits = ["400 recipients per 1h"]\n\n[[check]]\nuse = "allow"\n',
)
COLUMNS = "user, tier, tier_by, note, messages"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, VERIFIED)


def file(place: Place, text: str | bytes, name: str = "accounts.csv") -> str:
    path = place.config.parent / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def accounts(place: Place) -> list[tuple[object, ...]]:
    return place.ask(f"SELECT {COLUMNS} FROM account ORDER BY user")


def test_an_import_shows_what_it_would_change(place: Place) -> None:
    """New ones, changed ones, those that stay; a dry run writes nothing, and without --yes nobody can be asked here."""
    path = file(place, 'user,tier,note\nAlice,verified,"a, ""b"""\nbob@example.org,,\n')
    before = place.everything()
    result = place.run("user", "import", path, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "2 new, 0 change, 0 stay as they are" in result.output
    assert f"+ {ALICE}: tier auto -> verified (hand)" in result.output
    assert place.ran("user", "import", path).exit_code == 2
    assert place.everything() == before
    assert accounts(place) == []
    assert place.run("user", "import", path, "--yes", "--reason", "list of the shop").exit_code == 0
    assert accounts(place) == [
        (ALICE, "verified", "hand", 'a, "b"', 0),
        ("bob@example.org", "", "", "", 0),
    ]
    assert sorted(place.ask("SELECT tbl, key FROM change")) == [
        ("account", f'["{ALICE}"]'),
        ("account", '["bob@example.org"]'),
    ]
    history = place.ask("SELECT action, subject, reason FROM history")
    assert ("user import", ALICE, "list of the shop") in history
    again = place.json("user", "import", path, "--yes")
    assert again == {"dry_run": False, "new": 0, "changed": 0, "unchanged": 2, "first": []}


def test_a_column_that_is_not_there_changes_nothing(place: Place) -> None:
    """A list of notes leaves the tiers, and an empty tier takes one back; what policyd saw itself stays what it saw."""
    place.run("user", "verify", "alice")
    place.write("UPDATE account SET messages = 7")
    path = file(place, "user;note\nalice;x\n")
    assert place.run("user", "import", path, "--yes").exit_code == 0
    assert accounts(place) == [(ALICE, "verified", "hand", "x", 7)]
    path = file(place, '{"user": "alice", "messages": 99, "note": null}\n', "accounts.jsonl")
    assert place.run("user", "import", path, "--yes").exit_code == 0
    assert accounts(place) == [(ALICE, "verified", "hand", "", 7)]
    place.run("user", "import", file(place, "\ufeffuser,tier\nalice,\n"), "--yes")
    assert accounts(place) == [(ALICE, "", "", "", 0)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "user,tier\nbob,verified\nalice,verifid\n",
            "line 3: there is no tier 'verifid'; did you mean verified?",
        ),
        ("user,tier\nbob,verified\nBOB,new\n", "line 3: names 'bob@example.org' again"),
        ("user,tier\nbob\n", "line 2: has 1 columns, the first line has 2"),
        ("tier\nverified\n", "has no column 'user'"),
        ("user,teir\nbob,verified\n", "has a column 'teir'; did you mean tier?"),
        ("user,note\nbob,\x07\n", "line 2: the note must be one printable line"),
        ("user,tier\n,verified\n", "line 2: names no user"),
        ("user,first_seen\nbob,yesterday\n", "line 2: 'first_seen' must be a time"),
        ("user,tier_by\nbob,hand\n", "line 2: says who put the account into its tier"),
        ("user,messages\nbob,-1\n", "line 2: 'messages' must be a whole number"),
        (b"user,note\nbob,\xff\n", "is no UTF-8"),
        ("user,note,user\nbob,x,alice\n", "has the column 'user' twice"),
        ("user,note\nbob," + "x" * 200_000, "line 2: is longer than 100000 characters"),
        ("\0" * 200_000, "line 1: is longer than 100000 characters"),
        ('{"user": "bob"}\n{' + " " * 200_000, "line 2: is longer than 100000 characters"),
        ('{"user": "bob"}\n[]\n', "line 2: is no JSON object"),
        ('{"user": 1}\n', "line 1: names no user"),
        ('{"user": "bob", "strikes": 1}\n', "line 1: 'strikes' must be times"),
    ],
)
def test_one_wrong_line_and_nothing_is_changed(place: Place, text: str | bytes, said: str) -> None:
    """Each problem names its line, and none of the sound ones is taken."""
    result = place.ran("user", "import", file(place, text, "accounts"), "--yes")
    assert result.exit_code == 1
    assert said in result.stderr
    assert "nothing was changed" in result.stderr
    assert accounts(place) == []


def test_many_problems_are_not_all_told(place: Place) -> None:
    """The first 20, and how many more."""
    result = place.ran("user", "import", file(place, "user,tier\n" + "x,none\n" * 50), "--yes")
    assert result.stderr.count("\n") == 22
    assert "and 30 more problems" in result.stderr


@pytest.mark.parametrize("format_", FORMATS)
def test_what_goes_out_comes_in_again(place: Place, tmp_path: Path, format_: str) -> None:
    """Into the same database nothing changes; into a new one all of it comes: tiers, times, strikes, notes."""
    place.run("user", "verify", "alice")
    place.run("user", "note", "alice", 'says "x", =1+1')
    place.run("suspend", "alice")
    place.write("UPDATE account SET first_at = tier_since, last_at = tier_since, messages = 12")
    place.run("user", "tier", "bob", "bulk", "--force")
    text = place.run("user", "export", "--format", format_).stdout
    path = file(place, text, f"out.{format_}")
    assert place.json("user", "import", path, "--yes")["unchanged"] == 2
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other", VERIFIED)
    assert other.json("user", "import", path, "--yes")["new"] == 2
    assert accounts(other) == accounts(place)
    mine, theirs = (each.json("user", "show", "alice") for each in (place, other))
    for name in ("tier", "tier_by", "strikes", "first_seen", "last_seen", "note"):
        assert bool(mine[name]) == bool(theirs[name]), name
    assert len(theirs["strikes"]) == 1


def test_stdin_is_a_file_too(place: Place) -> None:
    """'-' reads stdin, which cannot be asked; the format is seen."""
    text = '{"user": "bob", "tier": "verified"}\n'
    assert place.run("user", "import", "-", stdin=text).exit_code == 2
    assert place.run("user", "import", "-", "--yes", stdin=text).exit_code == 0
    assert accounts(place) == [("bob@example.org", "verified", "hand", "", 0)]


def test_a_long_file_is_one_transaction(place: Place) -> None:
    """More than fit in one go: all are there, each told to the daemon, and the history has one line for all."""
    lines = "".join(f"u{n}@example.org,verified\n" for n in range(10_500))
    assert place.json("user", "import", file(place, "user,tier\n" + lines), "--yes")["new"] == 10_500
    assert place.ask("SELECT count(*) FROM account") == [(10_500,)]
    assert place.ask("SELECT count(*) FROM change") == [(10_500,)]
    assert place.ask("SELECT count(*) FROM history") == [(1,)]


def _plain(letter: str) -> bool:
    return letter.isprintable() and not letter.isspace()


NAMES = st.text(st.characters(), max_size=20).map(
    lambda text: "".join(filter(_plain, text)) + "x@example.org"
)
TEXTS = st.text(st.characters(), max_size=30).map(lambda text: "".join(filter(str.isprintable, text)).strip())
MOMENTS = st.integers(0, 4_000_000_000_000)


@given(
    st.lists(
        st.tuples(
            NAMES, st.sampled_from(("", "verified")), MOMENTS, st.lists(MOMENTS.map(lambda t: t + 1)), TEXTS
        )
    ),
    st.sampled_from(FORMATS),
    st.integers(-10_000, 10_000),
)
def test_every_account_survives_both_formats(
    rows: list[tuple[str, str, int, list[int], str]], format_: str, ahead: int
) -> None:
    """Whatever logins and notes hold, and wherever the clock stands, what is read is what was written."""
    known = []
    for user, tier, moment, strikes, note in rows:
        account = Account(user)
        account.tier, account.tier_by = tier, "hand" if tier else ""
        account.last_at = moment + 20_000 if moment else 0
        account.strikes = [at + 20_000 for at in strikes]  # type: ignore[assignment, unused-ignore]
        known.append(Known(account, note))
    times = Times(0, ahead)
    data = "".join(line + "\n" for line in lines_of(known, format_, times)).encode()
    problems: list[str] = []
    tiers = Tiers("", {"verified": Tier("verified")})
    read = list(Reader(io.BytesIO(data), format_, times, tiers, str, problems.append))
    assert problems == []
    assert [(wish.user, wish.columns["tier"], wish.columns["note"]) for wish in read] == [
        (each.account.user, each.account.tier, each.note) for each in known
    ]
    assert [wish.columns["last_at"] for wish in read] == [each.account.last_at for each in known]
    assert [json.loads(wish.columns["strikes"]) for wish in read] == [
        list(each.account.strikes) for each in known
    ]


def many(place: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file that is written in steps: alice changes, carol stays but for her note, the others are new."""
    monkeypatch.setattr(user_import, "IN_HISTORY", 10)
    monkeypatch.setattr(steps, "FIRST_STEP", 8)
    place.run("user", "verify", "alice")
    place.write("UPDATE account SET messages = 7")
    place.run("user", "note", "carol@example.org", "old", "--force")
    lines = [f"user{number}@example.org,verified,n" for number in range(30)]
    return file(place, "\n".join(["user,tier,note", "alice,,x", "carol,,new", *lines, ""]))


def test_many_are_written_in_steps(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon need not wait for all of it; at the end it is as if it had been written at once."""
    path = many(place, monkeypatch)
    taken = []
    take = account_rows.take
    monkeypatch.setattr(
        account_rows, "take", lambda change, entries: (taken.append(1), take(change, entries))
    )
    assert place.run("user", "import", path, "--yes").exit_code == 0
    assert len(taken) > 2
    assert accounts(place)[:2] == [(ALICE, "", "", "x", 0), ("carol@example.org", "", "", "new", 0)]
    users = sorted(f"user{number}@example.org" for number in range(30))
    assert accounts(place)[2:] == [(user, "verified", "hand", "n", 0) for user in users]
    assert place.ask("SELECT detail FROM history ORDER BY id DESC LIMIT 1") == [("30 new, 2 changed",)]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), sqlite3.OperationalError("disk I/O error")])
def test_many_that_cannot_all_be_written_change_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Interrupted, or on a disk that is full: what was written is taken back, but for what an account did since."""
    path = many(place, monkeypatch)
    before = place.ask("SELECT * FROM account ORDER BY user")
    take, taken = account_rows.take, []

    def takes(change: Change, entries: list[tuple[str, bool, dict[str, object]]]) -> None:
        taken.append(1)
        if len(taken) == 3:
            raise error
        take(change, entries)

    monkeypatch.setattr(account_rows, "take", takes)
    result = place.ran("user", "import", path, "--yes")
    assert result.exit_code == 1
    assert "taken back" in result.stderr
    assert place.ask("SELECT * FROM account ORDER BY user") == before
    assert place.ask("SELECT detail FROM history ORDER BY id DESC LIMIT 1") == [
        ("interrupted, and taken back",)
    ]
    changed = {json.loads(key)[0] for (key,) in place.ask("SELECT key FROM change WHERE tbl = 'account'")}
    assert changed >= {ALICE, "carol@example.org", "user0@example.org"}


@pytest.mark.parametrize("words", [("user", "list"), ("user", "note", "alice"), ("user", "export")])
@pytest.mark.parametrize("at", [1, 3])
def test_one_that_is_killed_is_taken_back_by_the_next_command(
    place: Place, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], at: int
) -> None:
    """Nobody sees a part of it; and once is enough."""
    path = many(place, monkeypatch)
    before = place.ask("SELECT * FROM account ORDER BY user")
    killed_in_step(place, path, at)
    journal = Path(f"{place.database}.import")
    assert journal.exists()
    if at > 1:
        assert place.ask("SELECT * FROM account ORDER BY user") != before
    journal.write_bytes(journal.read_bytes() + b'["torn@example.org", tr')
    assert "cut short" in place.ran(*words).stderr
    assert place.ask("SELECT * FROM account ORDER BY user") == before
    assert not journal.exists()
    assert "cut short" not in place.ran(*words).stderr


def test_a_journal_that_cannot_be_read_is_told_and_kept(place: Place) -> None:
    """In one line, and what was asked for is shown."""
    journal = Path(f"{place.database}.import")
    for damaged in (b"\0\0\0\n", b'{"file": "f", "summary": "s", "since": 0}\n\0\0\n'):
        journal.write_bytes(damaged)
        result = place.ran("user", "list")
        assert result.exit_code == 0
        assert f"{journal} is damaged; import the file again" in result.stderr
        assert journal.read_bytes() == damaged


def test_one_that_had_come_to_its_end_is_not_taken_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the last step, before the journal was gone."""
    path = many(place, monkeypatch)
    monkeypatch.setattr(import_journal.Journal, "end", lambda journal: None)
    assert place.run("user", "import", path, "--yes").exit_code == 0
    after = place.ask("SELECT * FROM account ORDER BY user")
    assert "cut short" not in place.ran("user", "list").stderr
    assert place.ask("SELECT * FROM account ORDER BY user") == after


def test_one_that_is_under_way_is_left_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other commands go on beside it; a second import waits for nobody."""
    path = many(place, monkeypatch)
    with import_journal.held(str(place.database)) as journal:
        with open_for_admin(str(place.database)) as connection:
            journal.begin(connection, "f", "1 new, 0 changed")
        assert "cut short" not in place.ran("user", "list").stderr
        result = place.ran("user", "import", path, "--yes")
        assert result.exit_code == 1
        assert "another 'policyctl user import' is under way" in result.stderr


def killed_in_step(place: Place, path: str, at: int) -> None:
    """An import by another process that ends in its step ``at`` as if by kill -9."""
    child = os.fork()
    if child == 0:
        take, taken = account_rows.take, []

        def takes(change: Change, entries: list[tuple[str, bool, dict[str, object]]]) -> None:
            taken.append(1)
            take(change, entries)
            if len(taken) == at:
                os.kill(os.getpid(), signal.SIGKILL)

        account_rows.take = takes
        place.ran("user", "import", path, "--yes")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_what_an_account_did_meanwhile_is_not_taken_back(place: Place) -> None:
    """Who has sent since stays known, and what another hand has set since stays."""
    place.run("user", "verify", "alice")
    place.write("UPDATE account SET messages = 7")
    new, sent = {"tier": "bulk", "tier_by": "hand", "tier_since": 5}, "sent@example.org"
    taken = []
    with open_for_admin(str(place.database)) as connection, admin.change(connection, "root") as change:
        for user, is_new in ((ALICE, False), (sent, True), ("other@example.org", True)):
            was = account_rows.as_it_is(connection, user)
            taken.append(account_rows.Taken(user, is_new, new, was))
            account_rows.take(change, [(user, is_new, new)])
        connection.execute(
            "UPDATE account SET messages = messages + 1, last_at = 9 WHERE user IN (?, ?)", (ALICE, sent)
        )
        account_rows.put_into_tier(change, "other@example.org", "verified", "hand", 6)
        account_rows.take_back(change, taken)
    assert accounts(place) == [
        (ALICE, "verified", "hand", "", 8),
        ("other@example.org", "verified", "hand", "", 0),
        (sent, "", "", "", 1),
    ]
