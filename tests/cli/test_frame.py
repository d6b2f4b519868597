"""The frame of policyctl: its table of commands, errors and exit codes, output for people and programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from policyd.cli import COMMANDS, common, main
from policyd.errors import NotFound, StoreRefused, UserError
from tests.cli.place import CONFIG, Place

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def shell(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_of_the_table_has_help(path: str) -> None:
    """The table names only what exists, and each command says what it does."""
    result = CliRunner().invoke(main, [*path.split(), "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage: policyctl" in result.output
    assert len(result.output.split("\n\n")) >= 3


def test_help_lists_every_first_word(place: Place) -> None:
    """Bare and with --help it lists the commands, from the table."""
    for words in ((), ("--help",), ("-h",)):
        result = place.run(*words)
        assert result.exit_code == 0
        for path in COMMANDS:
            if " " not in path:
                assert f"\n  {path} " in result.output


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["--help"], "sqlite3 tomllib policyd.store policyd.config policyd.checks"),
        (["ban", "--help"], "sqlite3 tomllib policyd.store policyd.config"),
        (["ban", "user", "alice@example.org"], "policyd.engine policyd.service policyd.decisionlog"),
        (["bans"], "policyd.engine policyd.service"),
        (["quota", "set", "alice", "5 messages per 1h"], "policyd.service"),
    ],
)
def test_what_is_not_imported(place: Place, words: list[str], missing: str) -> None:
    """Help and a ban start quickly: nothing heavy is imported for them."""
    code = (
        "import sys\nfrom policyd.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('loaded', *sys.modules)"
    )
    done = shell("-c", code, "--config", str(place.config), *words)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.rpartition("loaded")[2].split())
    assert "policyd.cli" in loaded
    for name in f"twisted dns sqlite_utils asyncio spf uvloop {missing}".split():
        assert name not in loaded


def test_as_a_module() -> None:
    """`python -m policyd.cli` is policyctl, and says so."""
    done = shell("-m", "policyd.cli", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("policyctl ")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 1, "no database"),
        (("bans",), 1, "start policyd once"),
        (("ban", "user", "alice"), 1, "start policyd once"),
        (("ban", "user"), 2, "VALUE"),
        (("ban", "usr", "alice"), 2, "usr"),
        (("bna",), 2, "did you mean ban?"),
        (("quota", "shw"), 2, "did you mean show?"),
        (("bans", "--colour"), 2, "--colour"),
        (("tier", "show", "nwe"), 3, "did you mean new?"),
    ],
)
def test_errors_of_a_real_run(place: Place, words: tuple[str, ...], code: int, says: str) -> None:
    """One clear line on stderr, nothing on stdout, and the exit code for scripts."""
    place.database.unlink()
    done = shell("-m", "policyd.cli", "--config", str(place.config), *(words or ("history",)))
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert done.stderr.startswith("policyctl: ")
    assert done.stderr.count("\n") == 1
    assert not place.database.exists()


def test_no_configuration(tmp_path: Path) -> None:
    """A missing file is named."""
    done = shell("-m", "policyd.cli", "--config", str(tmp_path / "no.toml"), "bans")
    assert done.returncode == 1
    assert "no.toml" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_problem_of_the_configuration(tmp_path: Path) -> None:
    """All problems at once, one line each, where the file itself is what it is about."""
    place = Place(tmp_path, CONFIG + "\n[[check]]\nuse = 'qouta'\n\n[nonsense]\nx = 1\n")
    before = place.everything()
    result = place.run("config", "check")
    assert result.exit_code == 1
    assert "qouta" in result.output
    assert "nonsense" in result.output
    assert result.output.count("policyctl: ") >= 2
    assert place.everything() == before


def test_a_newer_database(place: Place) -> None:
    """A database of a newer version is refused, with what to do."""
    place.write("PRAGMA user_version = 9999")
    result = place.run("ban", "user", "alice")
    assert result.exit_code == 1
    assert "newer policyd" in result.output


def test_a_damaged_database(place: Place) -> None:
    """A file that is no database is said to be damaged, and left alone."""
    place.database.write_bytes(b"not a database" * 1000)
    result = place.run("bans")
    assert result.exit_code == 1
    assert "damaged" in result.output
    assert place.database.read_bytes() == b"not a database" * 1000


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("so and so"), 1, "policyctl: so and so\n"),
        (NotFound("no such thing"), 3, "policyctl: no such thing\n"),
        (common.Unreachable("it does not answer"), 4, "policyctl: it does not answer\n"),
        (StoreRefused("not yours"), 1, "policyctl: not yours\n"),
        (click.UsageError("wrong"), 2, "policyctl: wrong; see policyctl bans --help\n"),
        (click.Abort(), 1, "policyctl: aborted\n"),
        (
            FileNotFoundError(2, "No such file or directory", "/x"),
            1,
            "policyctl: /x: No such file or directory\n",
        ),
        (
            PermissionError(13, "Permission denied", "/x"),
            1,
            "policyctl: /x: Permission denied; run policyctl as root, or as who may\n",
        ),
        (
            ModuleNotFoundError("No module named 'sqlite3'"),
            1,
            (
                "policyctl: No module named 'sqlite3'; the installation is not whole, or the owner of the database may not read "
                "it: install it where every user may read, or run policyctl as that owner\n"
            ),
        ),
        (UserError("a\x1b[31mb\r\u202ec"), 1, "policyctl: a\\x1b[31mb\\r\\u202ec\n"),
    ],
)
def test_each_kind_of_error(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, says: str
) -> None:
    """Whatever a command raises becomes one line and its exit code, and no terminal is painted by it."""

    def fails(self: common.Session, *_: object) -> None:
        raise error

    monkeypatch.setattr(common.Session, "show", fails)
    result = place.run("bans")
    assert (result.exit_code, result.output) == (code, says)


def test_json_before_and_after_the_command(place: Place) -> None:
    """--json means the same in both places."""
    place.run("ban", "sender", "x@example.net")
    before, after = place.run("--json", "bans"), place.run("bans", "--json")
    assert before.stdout == after.stdout
    assert [row["value"] for row in json.loads(after.stdout)] == ["x@example.net"]
    assert json.loads(place.run("ban", "--json").stdout) == json.loads(after.stdout)
    assert json.loads(place.run("allows", "--json").stdout) == []


def test_colours(place: Place) -> None:
    """Colours on a terminal only, and never with NO_COLOR."""
    place.run("ban", "sender", "x@example.net")
    assert "\x1b[" in place.run("bans", color=True).output
    assert "\x1b[" not in place.run("bans").output
    assert "\x1b[" not in place.run("bans", color=True, env={"NO_COLOR": "1"}).output


def test_a_table_of_hostile_text() -> None:
    """Cells are escaped and cut; numbers stand to the right."""
    assert "\x1b[2J" not in common.table(["a\x1b[2J"], [(1,)])
    text = common.table(["n", "who"], [(1, "a\x1b[2J\nb"), (100, "\u202ex"), (20, "y" * 500)])
    lines = click.unstyle(text).split("\n")
    assert lines[:3] == ["  n  who", "  1  a\\x1b[2J\\nb", "100  \\u202ex"]
    assert len(lines) == 4
    assert len(lines[3]) < 220


def test_completion() -> None:
    """The shell completes commands and their members."""
    env = {"_POLICYCTL_COMPLETE": "bash_complete", "COMP_WORDS": "policyctl quo", "COMP_CWORD": "1"}
    done = shell("-m", "policyd.cli", env=env)
    assert "plain,quota" in done.stdout
    done = shell("-m", "policyd.cli", env=env | {"COMP_WORDS": "policyctl quota gr", "COMP_CWORD": "2"})
    assert done.stdout.split() == ["plain,grant"]


def test_a_missing_module_is_said_in_one_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is not installed is named."""
    entry = COMMANDS["history"]._replace(target="policyd.cli.no_such_module:x")
    monkeypatch.setitem(COMMANDS, "history", entry)
    result = place.run("history")
    assert result.exit_code == 1
    assert "policyd.cli.no_such_module is missing" in result.output


def test_the_author_is_who_typed(place: Place) -> None:
    """SUDO_USER stands with the change; without it the user of the process."""
    place.run("ban", "sender", "a@example.net", env={"SUDO_USER": "ruth"})
    place.run("ban", "sender", "b@example.net", env={"SUDO_USER": "x\x1b[31m"})
    place.run("ban", "sender", "c@example.net", env={"SUDO_USER": ""})
    authors = [author for (author,) in place.ask("SELECT author FROM ban ORDER BY value")]
    assert authors[:2] == ["ruth", "x\\x1b[31m"]
    assert authors[2]
    assert [author for (author,) in place.ask("SELECT author FROM history ORDER BY id")] == authors


def test_the_entry_point_is_the_group() -> None:
    """`policyd.cli:main` is what the package's script runs."""
    assert isinstance(main, click.Group)


def test_many_at_once(place: Place) -> None:
    """Several policyctl at the same moment wait for each other; every change is there in the end."""
    words = [sys.executable, "-m", "policyd.cli", "--config", str(place.config), "ban", "sender"]
    running = [subprocess.Popen([*words, f"{number}@example.net"], cwd=ROOT) for number in range(6)]
    assert [process.wait(60) for process in running] == [0] * 6
    assert len(place.json("bans")) == 6
    assert len(place.ask("SELECT * FROM history")) == 6
