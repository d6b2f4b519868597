"""``when``: a check that is asked only after what another found, and the errors that keep one from never being asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyd import checks
from policyd.condition import Condition
from policyd.config import Config, load, show
from policyd.errors import ConfigError

FIRST = """
[[check]]
use = "bans"
name = "score"
for = "mx"
"""


def loaded(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "policyd.toml"
    path.write_text(text, encoding="utf-8")
    return load(path, checks.options_of)


def problem(tmp_path: Path, text: str) -> str:
    """The one problem of the file, without its directory."""
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    (only,) = caught.value.problems
    return only.replace(f"{tmp_path}/", "")


def second(when: str, direction: str = "mx") -> str:
    return f'[[check]]\nuse = "greylist"\nfor = "{direction}"\nwhen = {when}\n'


def test_conditions_are_read_and_written_back(tmp_path: Path) -> None:
    """`config show` writes what loads to the same."""
    config = loaded(tmp_path, FIRST + second('["score >= 1", "score=softfail"]'))
    assert config.checks[0].when == ()
    assert config.checks[1].when == (Condition("score", ">=", 1), Condition("score", "=", "softfail"))
    written = show(config)
    assert 'when = ["score >= 1", "score = softfail"]' in written
    again = loaded(tmp_path, written)
    assert again.checks == config.checks
    assert again.policy_version == config.policy_version


def test_a_condition_is_part_of_the_policy(tmp_path: Path) -> None:
    """Another condition decides otherwise: another version; none, written out or not, is the same as before."""
    versions = {
        loaded(tmp_path, FIRST + second(when)).policy_version
        for when in ('["score >= 1"]', '["score >= 2"]', '["score >= 2", "score = x"]', "[]")
    }
    assert len(versions) == 4
    plain = FIRST + '[[check]]\nuse = "greylist"\nfor = "mx"\n'
    assert loaded(tmp_path, plain).policy_version in versions


@pytest.mark.parametrize(
    ("when", "told"),
    [
        ('["dnsbl >= 1"]', "no check 'dnsbl' stands before this one (there is score)"),
        ('["score >= 1", "greylist = pass"]', "no check 'greylist' stands before this"),
        ('["score > x"]', "compares a word; only numbers are more or less"),
        ('["score"]', "'score' is no condition; write one like 'dnsbl >= 1' or 'spf = softfail'"),
        ('"score >= 1"', "must be a list"),
        ("[1]", "must be a text in quotes"),
    ],
)
def test_what_could_never_hold_is_an_error(tmp_path: Path, when: str, told: str) -> None:
    """With its place, and what to do."""
    only = problem(tmp_path, FIRST + second(when))
    assert only.startswith(("policyd.toml:6: ", "policyd.toml:9: ")), only
    assert told in only


def test_a_later_check_is_none_before(tmp_path: Path) -> None:
    """The order of the file is the order in which they run."""
    assert "move this check behind it" in problem(tmp_path, second('["score >= 1"]') + FIRST)


def test_a_check_of_the_other_direction_finds_nothing(tmp_path: Path) -> None:
    """One for mx and one for submission never see the same mail; any sees both."""
    first = FIRST.replace('"mx"', '"submission"')
    assert "check 'score' is for submission and this one for mx" in problem(
        tmp_path, first + second('["score >= 1"]')
    )
    assert loaded(tmp_path, first + second('["score >= 1"]', "any")).checks[1].when


def test_a_check_with_an_error_of_its_own_is_not_missed(tmp_path: Path) -> None:
    """Only its own error is told."""
    text = '[[check]]\nuse = "bans"\nname = "score"\naction = "x"\n' + second('["score >= 1"]')
    assert "when" not in problem(tmp_path, text)
