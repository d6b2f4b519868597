"""`policyctl sender`: rights of logins are set, seen, taken back, and kept with who and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyd.checks import Context
from policyd.checks.sender_login import Check, Options
from policyd.inquiry import Inquiry
from policyd.request import Site
from policyd.steering import Steering
from policyd.store.steering_reader import SteeringReader
from tests.cli.place import CONFIG, Place

ALICE = "alice@example.org"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, CONFIG + '\n[[check]]\nuse = "sender_login"\nfor = "submission"\n')


def refused(place: Place, sender: str) -> bool:
    """Whether the check, with the rights that a running daemon would see, refuses alice this sender."""
    reader = SteeringReader(str(place.database), Steering())
    try:
        request = Site(default_domain="example.org").request(
            {"protocol_state": "RCPT", "sender": sender, "sasl_method": "plain", "sasl_username": "alice"}
        )
        check = Check(Options(null_sender="refuse"), Context("sender_login", "submission"))
        with pytest.raises(StopIteration) as stop:
            check.check(request, 1, reader.steering(), Inquiry()).send(None)
        return stop.value.value is not None
    finally:
        reader.close()


def test_a_right_is_set_and_taken_back(place: Place) -> None:
    """It holds from the next request on, and ends with the next one after it was taken back."""
    assert refused(place, "sales@example.org")
    result = place.run(
        "sender", "allow", "alice", "Sales@Example.org", "@Lists.example.org.", "<>", "--reason", "x"
    )
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "alice@example.org may send as sales@example.org, until taken back",
        "alice@example.org may send as @lists.example.org, until taken back",
        "alice@example.org may send as <>, until taken back",
    ]
    for sender in ("sales@example.org", "any@lists.example.org", ""):
        assert not refused(place, sender)
    result = place.run("sender", "rm", "alice", "sales@example.org")
    assert result.output == "alice@example.org may no longer send as sales@example.org\n"
    assert refused(place, "sales@example.org")
    assert place.run("sender", "rm", "alice").exit_code == 0
    assert refused(place, "any@lists.example.org")
    assert refused(place, "")
    actions = [(row["action"], row["subject"], row["reason"]) for row in place.json("history")]
    assert ("sender allow", ALICE, "x") in actions
    assert ("sender rm", ALICE, "") in actions


def test_rights_are_listed(place: Place) -> None:
    """All, or one login's; for people and for programs, with author, reason and end."""
    place.run("sender", "add", "alice", "sales@example.org", "--for", "2h", "--reason", "ticket 4711")
    place.run("sender", "allow", "bob", "@example.net", "--force")
    assert [(row["user"], row["sender"]) for row in place.json("sender")] == [
        (ALICE, "sales@example.org"),
        ("bob@example.org", "@example.net"),
    ]
    (row,) = place.json("sender", "list", "alice")
    assert (row["reason"], row["author"]) == ("ticket 4711", "root")
    assert row["expires"]
    shown = place.run("sender", "show", "alice")
    assert "sales@example.org" in shown.output
    assert "@example.net" not in shown.output


def test_a_right_that_is_set_again_is_replaced(place: Place) -> None:
    """One row for a login and a sender."""
    place.run("sender", "allow", "alice", "sales@example.org", "--for", "1h")
    result = place.run("sender", "allow", "alice", "sales@example.org")
    assert "until taken back (before: until " in result.output
    assert len(place.json("sender")) == 1


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["allow", "alice", "sales"], 2, "'sales' is no sender; write alice@example.org, @example.org or <>"),
        (["allow", "alice", "@.example.org"], 2, "each domain is named itself"),
        (["allow", "alice", "a b@example.org"], 2, "is no sender"),
        (["allow", "alic", "x@example.org"], 3, "was never seen; did you mean alice@example.org?"),
        (["allow", "alice"], 2, "Missing argument"),
        (["rm", "alice", "x@example.org"], 3, "was not allowed to send as x@example.org"),
        (["rm", "alice"], 3, "was not allowed any sender"),
        (["show", "alice"], 3, "was not allowed any sender"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    place: Place, words: list[str], code: int, told: str
) -> None:
    """And nothing is changed."""
    before = place.everything()
    result = place.run("sender", *words)
    assert result.exit_code == code, result.output
    assert told in result.output
    assert result.output.count("\n") == 1
    assert place.everything() == before


def test_all_or_nothing(place: Place) -> None:
    """One that was never allowed keeps the others in force."""
    place.run("sender", "allow", "alice", "sales@example.org")
    assert place.run("sender", "rm", "alice", "sales@example.org", "other@example.org").exit_code == 3
    assert not refused(place, "sales@example.org")


def test_a_dry_run_changes_nothing(place: Place) -> None:
    """It says what would be done."""
    result = place.run("sender", "allow", "alice", "sales@example.org", "--dry-run")
    assert result.output.startswith("dry run, nothing is changed: alice@example.org may send as")
    assert place.json("sender") == []


def test_a_list_from_standard_input(place: Place) -> None:
    """One a line, with comments."""
    result = place.run("sender", "allow", "alice", "-", stdin="a@example.org # first\n\n#\n@example.net\n")
    assert result.exit_code == 0
    assert {row["sender"] for row in place.json("sender")} == {"a@example.org", "@example.net"}


def test_without_the_check_it_is_told(tmp_path: Path) -> None:
    """A right means nothing where no check asks for it."""
    place = Place(tmp_path)
    result = place.run("sender", "allow", "alice", "x@example.org")
    assert result.exit_code == 0
    assert "has no check 'use = \"sender_login\"'" in result.output
