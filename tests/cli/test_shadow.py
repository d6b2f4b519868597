"""policyctl shadow and enforce: what would have been done, each mail once, and how it is switched on."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyd.checks import options_of
from policyd.config import load
from policyd.service import build_engine
from tests.cli.place import Place
from tests.sample_database import Sample

CONFIG = """
[site]
domains = ["example.org"]
default_domain = "example.org"

[store]
url = "sqlite:///{path}"

[[check]]
use = "bans"

[[check]]
use = "quota"
for = "submission"
limits = ["2 messages per 1h"]
mode = "shadow"

[[check]]
use = "quota"
name = "whole-server"
for = "submission"
per = "server"
limits = ["3 messages per 1h"]
mode = "shadow"

[[detect]]
name = "many-senders"
when = "more than 1 sender addresses per user in 1h"
mode = "shadow"
then = "suspend"
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path, CONFIG)
    engine = build_engine(load(str(place.config), options_of))
    sample = Sample(place.database, engine=engine)
    for number in range(5):
        user = "alice@example.org" if number < 4 else "bob@example.org"
        sender = "other@example.org" if number == 3 else user
        for stage, recipient in (("RCPT", "x@example.com"), ("END-OF-MESSAGE", "x@example.com")):
            sample.ask(
                protocol_state=stage,
                instance=f"i{number}",
                sasl_method="plain",
                sasl_username=user,
                sender=sender,
                recipient=recipient,
                recipient_count="1",
            )
    sample.close()
    return place


def test_shadow_says_what_would_have_been_done(place: Place) -> None:
    """By check and detector, with accounts, counts and the first reason; each mail once, though asked at two stages."""
    told = place.json("shadow")
    assert told["in_shadow"] == ["quota", "whole-server", "many-senders"]
    found = [
        (group["name"], group["what"], group["times"], [one["user"] for one in group["accounts"]])
        for group in told["would"]
    ]
    assert found == [
        ("quota", "refuse", 2, ["alice@example.org"]),
        ("whole-server", "refuse", 2, ["alice@example.org", "bob@example.org"]),
        ("many-senders", "suspend", 1, ["alice@example.org"]),
    ]
    shown = place.run("shadow", "detect").output
    assert "2 sender addresses, more than 1 in 1h" in shown
    assert "quota" not in shown


def test_enforce_shows_asks_and_switches_on(place: Place) -> None:
    """One kind of check, the detectors, or one by its name; history keeps who did it, and check shadow takes it back."""
    refused = place.ran("enforce", "quota")
    assert (refused.exit_code, "add --yes to switch on quota, whole-server" in refused.stderr) == (1, True)
    assert "limit" in refused.stdout
    assert place.json("enforce", "quota", "--dry-run", "--yes")["enforced"] == ["quota", "whole-server"]
    assert place.ask("SELECT * FROM check_mode") == []
    shown = place.run("enforce", "quota", "--yes", "--reason", "a month in shadow").output
    assert shown.endswith("quota is in enforce\nwhole-server is in enforce\n")
    assert place.json("enforce", "many-senders", "--yes")["enforced"] == ["many-senders"]
    assert place.json("enforce", "all", "--yes")["enforced"] == []
    modes = {row["name"]: row["mode"] for row in place.json("check")}
    assert modes == {
        "bans": "enforce",
        "quota": "enforce",
        "whole-server": "enforce",
        "many-senders": "enforce",
    }
    assert place.run("check", "shadow", "many-senders").exit_code == 0
    assert place.json("shadow")["in_shadow"] == ["many-senders"]
    assert place.json("enforce", "detect", "--yes")["enforced"] == ["many-senders"]
    actions = [(row["action"], row["subject"], row["reason"]) for row in place.json("history")]
    assert ("enforce", "quota", "a month in shadow") in actions


def test_a_mode_set_by_hand_over_an_enforcing_file_is_taken_back(place: Place) -> None:
    """Then the file says it again, and nothing is left over it."""
    place.config.write_text(place.config.read_text().replace('mode = "shadow"\nthen', "then"))
    place.run("check", "shadow", "many-senders")
    assert place.json("enforce", "many-senders", "--yes")["enforced"] == ["many-senders"]
    assert place.ask("SELECT * FROM check_mode") == []


def test_while_everything_is_paused_it_is_said_that_nothing_holds_yet(place: Place) -> None:
    """The pause goes over it."""
    place.run("pause", "--for", "1h")
    assert "resume" in place.ran("enforce", "quota", "--yes").stderr


@pytest.mark.parametrize("command", ["shadow", "enforce"])
def test_a_name_that_is_none_is_not_found(place: Place, command: str) -> None:
    """With the one that was probably meant."""
    result = place.ran(command, "many-sendrs", *(["--yes"] if command == "enforce" else []))
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert "did you mean many-senders?" in result.stderr


def test_nothing_in_shadow_is_said(place: Place) -> None:
    """And what is in shadow without having had anything to do."""
    place.run("enforce", "all", "--yes")
    assert place.run("shadow").output == "nothing is in shadow\n"
    place.run("check", "shadow", "bans")
    assert "by: bans" in place.run("shadow").output


def test_check_knows_detectors(place: Place) -> None:
    """They are listed, shown, switched off and back, as checks are."""
    assert place.run("check", "off", "many-senders").output == "many-senders is off, until taken back\n"
    (row,) = place.json("check", "show", "many-senders")
    assert (row["use"], row["mode"], row["configured"]) == ("detect", "off", "shadow")
    assert (
        place.run("check", "auto", "many-senders").output
        == "many-senders is back in its configured mode (shadow)\n"
    )
