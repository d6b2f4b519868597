"""The DNS side of the daemon: built for whoever may ask, and for nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyd.checks import options_of
from policyd.config import load
from policyd.lookup import NoResolver
from policyd.names import Names

OWN = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    pass


class Check:
    def __init__(self, options, context):
        self.spf = context.spf
"""


@pytest.mark.parametrize(("use", "asks"), [("bans", False), ("spf", True), ("my_own.check", True)])
def test_who_may_ask_gets_a_resolver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str, asks: bool
) -> None:
    """A check of the admin's own too; and where nobody asks, dnspython is not even loaded."""
    (tmp_path / "my_own").mkdir()
    (tmp_path / "my_own" / "__init__.py").write_text("")
    (tmp_path / "my_own" / "check.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "policyd.toml"
    path.write_text(
        f'[site]\ndomains = ["example.org"]\n[dns]\nnameservers = ["127.0.0.1:5"]\n[[check]]\nuse = "{use}"\nname = "it"\n'
    )
    names = Names()
    names.prepare(load(path, options_of))
    assert isinstance(names.resolver, NoResolver) != asks
