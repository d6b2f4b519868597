"""The packages that the tests install, each built once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.package.machine import ROOT

#: What is upgraded from: a commit whose policyd had these units already. With the first release it becomes the last release.
PREVIOUS = "535a7b87042b7d0f98d16373a6089434a7b9feb6"


def build(target: Path, *arguments: str) -> Path:
    done = subprocess.run(
        [ROOT / "tools/build-deb.sh", target, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (package,) = target.glob("policyd_*.deb")
    return package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of this commit."""
    return build(tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="session")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of an earlier version."""
    return build(tmp_path_factory.mktemp("previous"), PREVIOUS, "0.0.9")
