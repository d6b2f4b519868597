"""policyctl while policyd.toml has errors: what only needs the database goes on, after one warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyd.checks import options_of
from policyd.config import rescue
from tests.cli.conftest import CONFIG as WHOLE
from tests.cli.conftest import Run
from tests.cli.place import CONFIG, Place
from tests.sample_database import Sample

BROKEN = {
    "an unknown key": CONFIG.replace("[tiers]", "[tiers]\ndefalt = 1"),
    "a check with errors": CONFIG
    + '\n[[check]]\nuse = "quota"\nname = "second"\nlimits = ["5 apples per 1h"]\n',
    "no TOML": CONFIG + "\n[[check]\nuse = allow\n",
    "no TOML before the store": "[server\nlisten = [\n" + CONFIG,
    "a listener that is none": CONFIG.replace('["inet:127.0.0.1:0"]', "25"),
    "a file that is not there": 'include = ["more.toml"]\n' + CONFIG,
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_what_needs_the_database_alone_goes_on(tmp_path: Path, text: str) -> None:
    """Bans, allows, limits, grants, modes and lists work, each with one warning that names the first error's place."""
    place = Place(tmp_path, text)
    for words in (
        ["ban", "user", "alice"],
        ["bans"],
        ["unban", "user", "alice"],
        ["allow", "client", "192.0.2.25"],
        ["quota", "set", "alice", "5 messages per 1h"],
        ["grant", "alice", "5", "messages", "--for", "1h"],
        ["grant", "list"],
        ["pause", "--for", "1h"],
        ["log"],
        ["history"],
        ["dump"],
        ["db", "size"],
    ):
        result = place.ran(*words)
        assert result.exit_code == 0, (words, result.stderr)
        told = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
        assert len(told) == 1, (words, result.stderr)
        assert told[0].startswith(f"warning: {tmp_path}/")
        assert "policyctl config check" in told[0]
    assert place.ask("SELECT kind, value FROM allow") == [("client", "192.0.2.25")]
    assert [row[0] for row in place.ask("SELECT DISTINCT user FROM user_limit")] == ["alice@example.org"]


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_what_goes_by_the_whole_file_is_refused(tmp_path: Path, text: str) -> None:
    """config check and show, try, ask and pruning tell the errors and do nothing."""
    place = Place(tmp_path, text)
    for words in (
        ["config", "check"],
        ["config", "show"],
        ["try", "user=alice"],
        ["ask", "user=alice"],
        ["db", "prune"],
        ["tier", "list"],
    ):
        result = place.ran(*words)
        assert (result.exit_code, result.stdout) == (1, ""), words
        assert all(line.startswith("policyctl: ") for line in result.stderr.splitlines())


@pytest.mark.parametrize(
    "text",
    [
        CONFIG.replace("sqlite:///{path}", "postgres://{path}"),
        CONFIG.replace("[store]", "[stroe"),
        CONFIG.replace('url = "sqlite:///{path}"', 'url = "sqlite:///{path}'),
        CONFIG + '\n[store]\nurl = "sqlite:///{path}2"\n',
        'include = ["conf.d/*.toml"]\n[server\n',
        'include = ["more.toml"]\n',
        "store = 5\n",
    ],
    ids=[
        "another database",
        "a broken head",
        "a broken line",
        "two of them",
        "perhaps included",
        "not read",
        "no section",
    ],
)
def test_a_place_that_is_not_certain_is_not_guessed(tmp_path: Path, text: str) -> None:
    """Rather nothing than a ban in another database."""
    place = Place(tmp_path, text)
    before = place.everything()
    result = place.ran("ban", "client", "192.0.2.77")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"policyctl: {tmp_path}/" in result.stderr
    assert place.everything() == before


def test_the_place_by_default_is_certain_where_nothing_is_said_of_it(tmp_path: Path) -> None:
    """A broken file without a word about the database means the default place."""
    path = tmp_path / "policyd.toml"
    path.write_text("[server\n")
    assert rescue(path, options_of).config.store.path == "/var/lib/policyd/policyd.db"


def test_a_login_without_a_domain_is_not_guessed(tmp_path: Path) -> None:
    """Whether alice is alice@example.org is not known when [site] cannot be read."""
    place = Place(tmp_path, CONFIG.replace('default_domain = "example.org"', "default_domain = 7"))
    result = place.ran("ban", "user", "alice", "--force")
    assert result.exit_code == 2
    assert "write the whole login" in result.stderr
    assert place.ran("ban", "user", "alice@example.org").exit_code == 0
    assert place.ask("SELECT value FROM ban") == [("alice@example.org",)]


def test_a_mode_can_be_set_for_a_check_with_errors(tmp_path: Path) -> None:
    """The daemon still runs it as it was."""
    place = Place(tmp_path, BROKEN["a check with errors"])
    result = place.ran("check", "shadow", "second", "--for", "1h")
    assert result.exit_code == 0, result.stderr
    assert "without check second" in result.stderr
    assert place.ran("check", "shadow", "thrid").exit_code == 3
    assert place.ran("check", "list").exit_code == 0


@pytest.mark.parametrize(
    "wrong", ['limits = ["5 apples per 1h"]', 'per = "server"'], ids=["when read", "when it is built"]
)
def test_looking_goes_as_far_as_it_can(
    sample: Sample, policyctl: Run, config_path: Path, tmp_path: Path, wrong: str
) -> None:
    """status, why, quota show and explain answer, and say what they leave out; the file's policy is not made up."""
    refused = sample.ask(recipient="", recipient_count="9")
    text = WHOLE.format(directory=tmp_path) + f'\n[[check]]\nuse = "quota"\nname = "third"\n{wrong}\n'
    config_path.write_text(text)
    assert policyctl("ban", "user", "alice").code == 0
    for words in (["why", "alice"], ["quota", "show", "alice"]):
        ran = policyctl(*words)
        assert ran.code == 0, ran.err
        assert ran.err.count("warning: ") == 1
        assert "third" in ran.err
    assert policyctl("why", "alice", "--json").json["check"] == "bans"
    assert policyctl("explain", str(refused.settled.ref)).code == 0
    assert policyctl("status").code == 4


@pytest.mark.parametrize(
    "added",
    ['[[check]\nuse = "quota"\n', '[[check]]\nuse = "quota"\nname = "b"\nlimits = ["5 apples per 1h"]\n'],
)
def test_why_does_not_say_yes_by_half_a_policy(
    sample: Sample, policyctl: Run, config_path: Path, added: str
) -> None:
    """A check that cannot be read may refuse; one that can, does."""
    sample.ask()
    config_path.write_text(config_path.read_text() + added)
    ran = policyctl("why", "alice")
    assert "can send now" not in ran.out
    assert ran.out.startswith("alice@example.org: nothing refuses it that can be read")
    assert policyctl("why", "alice", "--json").json["can_send"] is None
    assert policyctl("ban", "client", "192.0.2.0/24").code == 0
    found = policyctl("why", "192.0.2.7", "--json").json
    assert (found["can_send"], found["check"]) == (False, "bans")
    sample.ask(recipient="", recipient_count="4", client_address="203.0.113.1")
    found = policyctl("why", "alice", "--json").json
    assert (found["can_send"], found["check"]) == (False, "quota")


def test_status_says_that_the_file_has_errors(sample: Sample, policyctl: Run, config_path: Path) -> None:
    """The daemon would not start with it, which nobody should find out at the next restart."""
    sample.ask()
    config_path.write_text(config_path.read_text() + "\n[nonsense]\n")
    found = policyctl("status", "--json").json
    assert found["policy_of_file"] is None
    assert any("would not start" in warning for warning in found["warnings"])
    assert not any("systemctl reload" in warning for warning in found["warnings"])
    assert "the file has errors" in policyctl("status").out
