"""policyd and policyctl beside each other: what is set holds at once, and what cannot be done is one clear line and no change."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.asking import ALICE, RCPT, Asker, attributes, encoded, in_parallel, policy, request
from tests.system.daemon import Policyd
from tests.system.waiting import wait_for

NOBODY = 65534
#: Becomes somebody else, with all of policyd and what it needs loaded before (the interpreter may be root's own), and goes on.
AS_NOBODY = """
import argparse, importlib, os, pkgutil, sys
import policyd, policyd.checks, policyd.cli, policyd.config, policyd.store, policyd.__main__
for package in (policyd.checks, policyd.cli, policyd.config, policyd.store, policyd):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if module.name not in ("policyd.cli.__main__", "policyd.twisted_listen"):
            importlib.import_module(module.name)
program = sys.argv.pop(1)
if program == "policyd":
    from twisted.internet import asyncioreactor
    try:
        import uvloop
    except ImportError:
        pass
import encodings.idna, encodings.utf_8_sig
try:
    policyd.config.load(sys.argv[2], policyd.checks.options_of)  # loads what is loaded late
except policyd.errors.PolicydError:
    pass
os.setgroups([]); os.setgid(65534); os.setuid(65534)
main = policyd.cli.main if program == "policyctl" else policyd.__main__.main
sys.exit(main(sys.argv[1:]))
"""


def refused(done: subprocess.CompletedProcess[str], *words: str, codes: tuple[int, ...] = (1,)) -> str:
    """The one line in which a command says why it did nothing."""
    lines = done.stderr.splitlines()
    assert done.returncode in codes, done
    assert len(lines) == 1, done
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines
    # What to do stands behind a semicolon.
    assert re.search(r"[;:?] *\S", lines[0]), lines
    return lines[0]


def state(directory: Path) -> dict[str, str]:
    """Each file with a digest of what is in it; locks and the index of the WAL are no content."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith(("-lock", "-shm", "messages"))
    }


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Policyd]]:
    """A daemon, and where it listens."""
    directory = tmp_path_factory.mktemp("commands")
    address = f"unix:{directory}/sock"
    with Policyd(directory, policy(address, limits=["100000 messages per 1d"])) as policyd:
        yield address, policyd


def test_a_ban_holds_on_the_next_request_of_an_open_connection(running: tuple[str, Policyd]) -> None:
    """Ban, unban, at every stage; the answer changes with the first request after policyctl ends."""
    address, policyd = running
    user = "ban-me@example.org"
    with Asker(address) as asker:
        assert asker.ask(user=user) == "DUNNO"
        begun = time.monotonic()
        policyd.ctl("ban", "user", user, "--reason", "test")
        assert asker.ask(user=user).startswith("550 ")
        print(f"policyctl ban until refused: {time.monotonic() - begun:.2f} s")
        assert asker.ask(RCPT, user).startswith("550 ")
        policyd.ctl("unban", "user", user)
        assert asker.ask(user=user) == "DUNNO"


def test_own_limits_hold_on_the_next_request(running: tuple[str, Policyd]) -> None:
    """Grants, own limits and pause are as quick as bans."""
    address, policyd = running
    user = "bob@example.org"
    with Asker(address) as asker:
        assert asker.ask(user=user) == "DUNNO"
        policyd.ctl("check", "shadow", "quota")
        policyd.ctl("check", "enforce", "quota")
        policyd.ctl("allow", "client", "192.0.2.7", "--for", "1h")
        policyd.ctl("ban", "user", user)
        assert asker.ask(user=user) == "DUNNO"  # allow stands before bans in this configuration
        policyd.ctl("allow", "rm", "client", "192.0.2.7")
        assert asker.ask(user=user).startswith("550 ")
        policyd.ctl("unban", "user", user)


def test_many_policyctl_at_once(running: tuple[str, Policyd]) -> None:
    """Changes from several policyctl at the same time, under load: none is lost, none says that the database is locked."""
    address, policyd = running
    policyd.ctl("bans")

    def ban(number: int) -> None:
        for turn in range(3):
            policyd.ctl("ban", "sender", f"s{number}.{turn}@example.net")

    def load() -> None:
        with Asker(address) as asker:
            for _ in range(300):
                asker.ask()

    in_parallel([*[lambda number=number: ban(number) for number in range(5)], load, load])  # type: ignore[misc]
    with Asker(address) as asker:
        for number in range(5):
            for turn in range(3):
                assert asker.ask(RCPT, "", sender=f"s{number}.{turn}@example.net").startswith("550 ")
    assert "store-sick" not in policyd.told()


def test_ask_goes_to_the_running_daemon(running: tuple[str, Policyd]) -> None:
    """``policyctl ask`` shows the daemon's own answer."""
    _, policyd = running
    before = policyd.query("SELECT count(*) FROM decision")[0][0]
    assert "action=DUNNO" in policyd.ctl("ask", f"user={ALICE}")
    file = policyd.directory / "request"
    file.write_bytes(request())
    assert "action=DUNNO" in policyd.ctl("ask", str(file))
    assert policyd.query("SELECT count(*) FROM decision")[0][0] == before + 2
    assert encoded(attributes())  # the same form that the file has


def test_an_unknown_user(running: tuple[str, Policyd]) -> None:
    """A login that was never seen is not banned by mistake; one that is nearly right is suggested."""
    address, policyd = running
    with Asker(address) as asker:
        asker.ask(user="charlotte@example.org")
    before = policyd.query("SELECT * FROM ban"), policyd.query("SELECT count(*) FROM history")
    refused(
        policyd.try_ctl("ban", "user", "charlote@example.org"), "charlotte@example.org", "--force", codes=(3,)
    )
    refused(policyd.try_ctl("quota", "set", "nobody-at-all@example.org", "5 messages per 1d"), codes=(3,))
    assert (policyd.query("SELECT * FROM ban"), policyd.query("SELECT count(*) FROM history")) == before


def test_an_unreachable_socket(tmp_path: Path) -> None:
    """Nobody listens: policyctl says so with an exit code of its own, and needs no daemon for a ban."""
    policyd = Policyd(tmp_path, policy(f"unix:{tmp_path}/sock"))
    refused(policyd.try_ctl("ban", "user", ALICE, "--force"), "there is no database", "start policyd")
    assert not policyd.database.exists()
    with policyd:
        pass
    before = state(tmp_path)
    refused(policyd.try_ctl("ask", f"user={ALICE}"), "cannot be reached", codes=(4,))
    assert state(tmp_path) == before
    policyd.ctl("ban", "user", ALICE, "--force")
    with policyd, Asker(f"unix:{tmp_path}/sock") as asker:
        assert asker.ask().startswith("550 ")


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("unix:{tmp}/none/sock", ("the directory does not exist",)),
        ("inet:198.51.100.1:10047", ("198.51.100.1",)),
        (
            "tcp:port=none",
            ("tcp:port=none is no Twisted endpoint", "write it as tcp:10047:interface=127.0.0.1"),
        ),
        ("tcp:10047:intrface=127.0.0.1", ("is no Twisted endpoint", "intrface")),
        ("nonsense:1", ("nonsense:1",)),
        ("unix:{tmp}/file", ("no socket",)),
    ],
)
def test_a_listener_that_cannot_be_had(tmp_path: Path, listen: str, words: tuple[str, ...]) -> None:
    """policyd names the listener and ends."""
    (tmp_path / "file").write_text("mine")
    address = listen.format(tmp=tmp_path)
    if address.startswith("inet:"):
        address = f"{{ address = '{address}', allow_from = ['192.0.2.0/24'] }}"
    done = Policyd(tmp_path, policy(address)).try_start()
    assert done.returncode == 1
    (complaint,) = done.stderr.splitlines()
    assert complaint.startswith("policyd: ")
    for word in words:
        assert word in complaint
    assert (tmp_path / "file").read_text() == "mine"


def test_a_bad_configuration(tmp_path: Path) -> None:
    """Daemon and policyctl name each problem with its line, and make nothing."""
    policyd = Policyd(tmp_path, policy(f"unix:{tmp_path}/sock", server="deadline = 'soon'\nlisten_to = 1"))
    before = state(tmp_path)
    for done in (
        policyd.try_start(),
        policyd.try_ctl("config", "check"),
    ):
        assert done.returncode == 1, done
        lines = [line for line in done.stderr.splitlines() if f"{policyd.config}:" in line]
        assert len(lines) == 2, done
        assert "deadline" in lines[0]
        assert "listen_to" in lines[1]
        assert "Traceback" not in done.stderr
    # Who must ban at night need not mend the file first; here there is no database yet.
    done = policyd.try_ctl("ban", "user", ALICE, "--force")
    assert done.returncode == 1, done
    warning, error = done.stderr.splitlines()
    assert "deadline" in warning
    assert "start policyd once" in error
    assert state(tmp_path) == before
    policyd.config.unlink()
    refused(policyd.try_start(), str(policyd.config))
    refused(policyd.try_ctl("bans"), str(policyd.config))


def test_a_database_of_a_newer_version(tmp_path: Path) -> None:
    """It is left as it is, by the daemon and by policyctl."""
    policyd = Policyd(tmp_path, policy(f"unix:{tmp_path}/sock"))
    with policyd:
        pass
    connection = sqlite3.connect(policyd.database)
    connection.execute("PRAGMA user_version = 9999")
    connection.close()
    before = state(tmp_path)
    refused(policyd.try_start(), "newer policyd", "9999", "install that version")
    refused(policyd.try_ctl("ban", "user", ALICE, "--force"), "newer policyd", "install that version")
    assert state(tmp_path) == before


def test_two_daemons_on_one_database(tmp_path: Path) -> None:
    """The second one ends and says why; the first one goes on, and its database is its own."""
    address = f"unix:{tmp_path}/sock"
    (tmp_path / "second").mkdir()
    with Policyd(tmp_path, policy(address)) as first:
        second = Policyd(tmp_path / "second", policy(f"unix:{tmp_path}/other"), database=first.database)
        refused(second.try_start(), "in use by another policyd", "stop it first")
        assert not (tmp_path / "other").exists()
        with Asker(address) as asker:
            assert asker.ask() == "DUNNO"
        first.kill()
        with second, Asker(f"unix:{tmp_path}/other") as asker:
            assert asker.ask() == "DUNNO"
        first.start()


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody may go through."""
    directory = Path(tempfile.mkdtemp(prefix="policyd-test-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_without_permission(open_directory: Path) -> None:
    """Another user can neither change nor read anything, and is told whom to be."""
    address = f"unix:{open_directory}/sock"
    policyd = Policyd(open_directory, policy(address))
    policyd.config.chmod(0o644)

    def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", AS_NOBODY, command[0], "--config", str(policyd.config), *command[1:]],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    with policyd:
        with Asker(address) as asker:
            assert asker.ask() == "DUNNO"
        before = policyd.query("SELECT * FROM ban")
        for command in (
            ("ban", "user", ALICE),
            ("bans",),
            ("quota", "show", ALICE),
            ("log",),
            ("pause", "--for", "1h"),
        ):
            refused(as_nobody("policyctl", *command), "ermission denied", "root")
        refused(as_nobody("policyctl", "ask", f"user={ALICE}"), codes=(4,))
        assert policyd.query("SELECT * FROM ban") == before
        with Asker(address) as asker:
            assert asker.ask() == "DUNNO"
    done = as_nobody("policyd")
    assert done.returncode == 1
    assert "ermission denied" in done.stderr
    assert "Traceback" not in done.stderr
    policyd.config.chmod(0o600)
    refused(as_nobody("policyctl", "bans"), str(policyd.config))
    with policyd:
        wait_for(lambda: policyd.runs, policyd.told)
