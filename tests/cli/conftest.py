"""A configuration, a database with some history, and policyctl run as a person would."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from policyd.checks import options_of
from policyd.cli import main
from policyd.config import load
from policyd.service import build_engine
from tests.sample_database import Sample

CONFIG = """
[site]
domains = ["example.org"]
networks = ["127.0.0.0/8"]
default_domain = "example.org"

[server]
listen = ["inet:127.0.0.1:1"]

[store]
url = "sqlite://{directory}/policyd.db"

[log]
decisions = ["file:{directory}/decisions.log"]

[keep]
min_free = "1KB"

[tiers]
default = "new"

[tier.new]
limits = ["5 recipients per 1h", "2MB per 1d"]

[[check]]
use = "allow"

[[check]]
use = "bans"

[[check]]
use = "quota"
for = "submission"

[[check]]
use = "quota"
name = "whole-server"
for = "submission"
per = "server"
limits = ["3 messages per 1h"]
mode = "shadow"
"""


class Ran(NamedTuple):
    """What a run of policyctl came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output, read as JSON; it has to be ASCII."""
        assert self.out.isascii()
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "policyd.toml"
    path.write_text(CONFIG.format(directory=tmp_path), encoding="utf-8")
    return path


@pytest.fixture
def sample(tmp_path: Path, config_path: Path) -> Iterator[Sample]:
    """The database of that configuration, decided on by its own engine."""
    sample = Sample(tmp_path / "policyd.db", engine=build_engine(load(config_path, options_of)))
    yield sample
    sample.close()


@pytest.fixture
def policyctl(config_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs policyctl with that configuration."""

    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main(["--config", str(config_path), *arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return run
