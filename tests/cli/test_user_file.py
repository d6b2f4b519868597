"""Accounts as a file: what is taken in is shown before, all or nothing, and what goes out comes in again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.accounts import Account
from policyd.cli.common import Times
from policyd.cli.user_file import FORMATS, Reader, lines_of
from policyd.store.account_rows import Known
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
