"""policyctl postfix without a Postfix: what it says then, and what a bare noun means."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.place import Place


@pytest.mark.parametrize("words", [(), ("show",), ("enable", "--dry-run"), ("disable", "--yes")])
def test_without_an_instance_it_is_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    """No main.cf there: one line that names it, nothing changed; the bare noun is show."""
    ran = Place(tmp_path).ran(
        "postfix", *words, *(("--postfix-config", str(tmp_path / "none")) if words else ())
    )
    if words:
        assert (ran.exit_code, ran.stdout) == (1, "")
        assert "main.cf" in ran.stderr
        assert ran.stderr.count("\n") == 1
    else:
        assert ran.exit_code in (0, 1)


@pytest.mark.parametrize("command", ["enable", "disable"])
def test_a_program_cannot_be_asked_back(tmp_path: Path, command: str) -> None:
    """--json has nobody to confirm, so it wants --yes."""
    ran = Place(tmp_path).ran("postfix", command, "--json", "--postfix-config", str(tmp_path))
    assert ran.exit_code == 2
    assert "--yes" in ran.stderr
