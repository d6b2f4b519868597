"""`--no-skips`, on which CI relies: a test that does not run to its end is a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent / "conftest.py"

DODGES = {
    "mark": "import pytest\n@pytest.mark.skip(reason='dodged')\ndef test_it(): pass\n",
    "call": "import pytest\ndef test_it(): pytest.skip('dodged')\n",
    "module": "import pytest\npytest.skip('dodged', allow_module_level=True)\n",
    "expected": "import pytest\n@pytest.mark.xfail(reason='dodged')\ndef test_it(): assert False\n",
    "fixture": "import pytest\n@pytest.fixture\ndef f(): pytest.skip('dodged')\ndef test_it(f): pass\n",
}


def run(directory: Path, sources: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, directory / "conftest.py")
    for name, source in sources.items():
        (directory / f"test_{name}.py").write_text(source)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(directory), *options],
        cwd=directory,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One strict run over every dodge and one honest test."""
    honest = {"honest": "def test_it(): pass\n"}
    return run(
        tmp_path_factory.mktemp("strict"), DODGES | honest, "--no-skips", "--continue-on-collection-errors"
    )


@pytest.mark.parametrize("dodge", DODGES)
def test_a_test_that_is_skipped_fails(dodge: str, strict: subprocess.CompletedProcess[str]) -> None:
    """However a test gets out of running, the run fails and tells which and why."""
    assert strict.returncode not in (0, 5), strict.stdout
    named = f"test_{dodge}.py did not" if dodge == "module" else f"test_{dodge}.py::test_it did not"
    told = [line for line in strict.stdout.splitlines() if named in line]
    assert any("dodged" in line for line in told)  # the summary shortens it, the report does not


def test_a_test_that_runs_passes(tmp_path: Path) -> None:
    """The option itself fails nothing, and without it a skip is allowed."""
    assert run(tmp_path, {"honest": "def test_it(): pass\n"}, "--no-skips").returncode == 0
    assert run(tmp_path, DODGES).returncode == 0
