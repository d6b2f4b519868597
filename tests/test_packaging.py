"""What an installed policyd holds and needs: the built tree, the declared requirements, the two commands."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import policyd
from policyd import checks
from policyd.config import doubts, load
from tests.test_rings import MODULES, imports_of

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Where the name of a distribution is not the name that is imported.
IMPORTED_AS = {"pyspf": "spf", "dnspython": "dns", "sqlite-utils": "sqlite_utils"}


def requirement_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9_-]+", requirement)
    assert match is not None, requirement
    return match[0]


def declared(requirements: list[str]) -> set[str]:
    names = {requirement_name(requirement) for requirement in requirements}
    return {IMPORTED_AS.get(name, name) for name in names}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that an installation puts into site-packages, built without touching the checkout."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "policyd", source / "policyd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("built")
    build = subprocess.run(
        [sys.executable, "-c", "from setuptools import setup; setup()", "-q", "build_py", "-d", str(target)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    return target


def test_an_installation_holds_every_file_of_the_package(built: Path) -> None:
    """Nothing that lies in policyd/ is forgotten: modules, schema, shipped configuration, type marker."""
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "policyd").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    installed = {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()}
    assert installed == wanted


def test_the_installed_tree_works_without_the_checkout(built: Path, tmp_path: Path) -> None:
    """`python -m policyd --help` runs from what was installed, and names itself."""
    for module in ("policyd", "policyd.cli"):
        shown = subprocess.run(
            [sys.executable, "-m", module, "--help"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(built), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert shown.returncode == 0, shown.stderr
        assert "--config" in shown.stdout


@pytest.mark.parametrize("command", sorted(PROJECT["project"]["scripts"]))
def test_each_command_leads_to_a_function(command: str) -> None:
    """The scripts of pyproject.toml can be called."""
    module, _, function = PROJECT["project"]["scripts"][command].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_import_is_declared() -> None:
    """A library that policyd imports is one it asks for; uvloop and maxminddb alone are extras."""
    extras = PROJECT["project"]["optional-dependencies"]
    asked = declared([*PROJECT["project"]["dependencies"], *extras["fast"], *extras["countries"]])
    # Twisted requires zope.interface itself, under every version.
    asked |= {"policyd", "zope"} | sys.stdlib_module_names
    missing = {
        f"{path.relative_to(ROOT)}:{found.line}: {found.target}"
        for path in MODULES.values()
        for found in imports_of(path)
        if found.target.partition(".")[0] not in asked
    }
    assert not missing


def test_every_requirement_can_be_imported() -> None:
    """Both worlds hold all that is declared; Debian's pyspf has no metadata, so importing is the only proof."""
    for name in declared(PROJECT["project"]["dependencies"]):
        importlib.import_module(name)


def test_every_requirement_has_a_lower_bound() -> None:
    """An admin with an older library hears it from pip, not from a traceback at night."""
    for requirement in PROJECT["project"]["dependencies"]:
        assert re.search(r">=\d", requirement), requirement


def test_the_version_is_told_once() -> None:
    """The package and its metadata cannot disagree, and the number is one that pip can compare."""
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", policyd.__version__)


def test_the_packages_version_is_this_one() -> None:
    """The newest entry of the Debian changelog is about the version that is built."""
    first = (ROOT / "packaging/debian/changelog").read_text(encoding="utf-8").split("\n", 1)[0]
    assert first.startswith(f"policyd ({policyd.__version__}) ")


def test_the_package_asks_for_every_requirement() -> None:
    """Debian's pyspf has no metadata, so dh_python3 finds all requirements but that: it, and the versions with security fixes,
    are named by hand."""
    control = (ROOT / "packaging/debian/control").read_text(encoding="utf-8")
    depends = control.split("\nDepends:", 1)[1].split("\nRecommends:", 1)[0]
    for needed in (
        "python3-spf",
        "python3-twisted (>= 22.4.0-4+deb12u1)",
        "python3-dnspython (>= 2.3.0-1+deb12u1)",
        "${python3:Depends}",
    ):
        assert f" {needed}" in depends


def test_the_shipped_configuration_hurts_nobody() -> None:
    """It loads, nothing in it is doubtful, and all that could refuse or suspend is in shadow, but bans and what spares."""
    config = load(str(ROOT / "packaging/policyd.toml"), checks.options_of)
    assert doubts(config) == []
    assert {check.use for check in config.checks if check.mode == "enforce"} == {"allow", "bans"}
    assert {check.use for check in config.checks if check.mode == "shadow"} >= {"quota", "dnsbl", "spf"}
    assert {detect.section.mode for detect in config.detects} == {"shadow"}
    assert [listener.address for listener in config.server.listen] == [
        "unix:/var/spool/postfix/policyd/policy.sock"
    ]


def test_each_manual_page_is_in_the_package() -> None:
    """A new page in man/ is installed, and so is each unit, whose name dh must be told."""
    pages = (ROOT / "packaging/debian/manpages").read_text(encoding="utf-8").split()
    assert {f"debian/man/{page.stem}" for page in (ROOT / "man").glob("*.scd")} == set(pages)
    rules = (ROOT / "packaging/debian/rules").read_text(encoding="utf-8")
    for unit in (ROOT / "packaging/systemd").iterdir():
        assert "@" in unit.name or f" {unit.name}" in rules


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_shells_complete_commands(shell: str) -> None:
    """The script that the package installs is made by the program itself, and what it then asks is answered without loading what
    only commands need."""

    def asked(instruction: str, **words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "policyd.cli"],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "_POLICYCTL_COMPLETE": f"{shell}_{instruction}",
                **words,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert not re.search(r"\| +(twisted|dns|sqlite_utils)\b", done.stderr)
        return done.stdout

    assert f"_POLICYCTL_COMPLETE={shell}_complete" in asked("source")
    assert "unban" in re.split(r"[,\s]", asked("complete", COMP_WORDS="policyctl unb", COMP_CWORD="1"))


def script(name: str, tmp_path: Path, *arguments: str, **commands: str) -> subprocess.CompletedProcess[str]:
    """A maintainer script, with its paths under ``tmp_path``, and with these commands instead of the machine's."""
    for command, body in {"chown": 'echo "chown $*"', "rm": "true", **commands}.items():
        path = tmp_path / "bin" / command.replace("_", "-")
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
    text = (ROOT / f"packaging/debian/policyd.{name}").read_text(encoding="utf-8")
    return subprocess.run(
        ["sh", "-s", "--", *arguments],
        input=re.sub(r"/(etc|var)/", rf"{tmp_path}/\1/", text),
        env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("rights", "before", "given"),
    [
        ("root:root:640", "", True),
        ("root:root:644", "", True),
        ("root:root:640", "0.1.0", True),
        ("root:policyd:640", "0.1.0", False),
        ("root:mail:640", "0.1.0", False),
    ],
)
def test_the_configuration_is_given_to_the_daemon(
    tmp_path: Path, rights: str, before: str, given: bool
) -> None:
    """At first, and when dpkg puts back one that was deleted (--force-confmiss); else its rights are the admin's."""
    (tmp_path / "etc/policyd").mkdir(parents=True)
    config = tmp_path / "etc/policyd/policyd.toml"
    config.touch()
    done = script(
        "postinst",
        tmp_path,
        "configure",
        before,
        stat=f"echo {rights}",
        systemd_sysusers="true",
        dpkg_statoverride="false",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == (["chown", "root:policyd", str(config)] if given else [])


def test_a_configuration_that_was_deleted_stops_no_installation(tmp_path: Path) -> None:
    """dpkg leaves it deleted."""
    done = script("postinst", tmp_path, "configure", "0.1.0", dpkg_statoverride="false")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_user_that_cannot_be_removed_stops_no_purge(tmp_path: Path) -> None:
    """Somebody has a shell as policyd: it is said, and the package is gone all the same."""
    done = script(
        "postrm",
        tmp_path,
        "purge",
        getent="true",
        userdel="exit 8",
        groupdel="echo 'primary group' >&2; exit 8",
    )
    assert done.returncode == 0
    assert "user policyd is still there" in done.stderr
    assert "group policyd is still there" in done.stderr


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("how", ["remove", "upgrade"])
def test_whoever_removes_what_postfix_asks_is_told(tmp_path: Path, how: str, asked: bool) -> None:
    """Submission would wait; only then, and never at an upgrade."""
    asks = "policyd_submission = check_policy_service { unix:policyd/policy.sock, timeout=10s }"
    others = "spf = check_policy_service unix:private/policyd-spf"
    done = script("prerm", tmp_path, how, postconf=f"echo '{asks if asked else others}'")
    assert done.returncode == 0
    assert ("policyctl postfix disable" in done.stderr) == (asked and how == "remove")
