"""What systemd is told: when policyd listens, reloads, ends, and that it lives; and nothing where nobody asked."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.notify import Manager


@pytest.fixture(params=["path", "abstract"])
def inbox(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The manager's end, of both kinds that systemd uses."""
    name = str(tmp_path / "notify")
    if request.param == "abstract":
        name = "@" + name
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(name.replace("@", "\0"))
        inbox.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield inbox


def heard(inbox: socket.socket) -> list[str]:
    return inbox.recv(4096).decode().split("\n")


def test_each_step_is_told(inbox: socket.socket) -> None:
    """In the words of sd_notify(3); a reload with the time that systemd compares."""
    manager = Manager()
    assert manager.watchdog == 30
    manager.ready("policy 71705e7f")
    assert heard(inbox) == ["READY=1", "STATUS=policy 71705e7f"]
    manager.reloading()
    word, time = heard(inbox)
    assert word == "RELOADING=1"
    assert time.partition("=")[0] == "MONOTONIC_USEC"
    assert int(time.partition("=")[2]) > 0
    manager.alive()
    assert heard(inbox) == ["WATCHDOG=1"]
    manager.stopping()
    assert heard(inbox)[0] == "STOPPING=1"


def test_it_is_not_handed_on(inbox: socket.socket) -> None:
    """A program that policyd starts cannot speak for it."""
    Manager()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
    assert Manager().watchdog == 0


@pytest.mark.parametrize(("usec", "pid"), [("", ""), ("soon", ""), ("30000000", "1")])
def test_without_a_watchdog_for_us_there_is_none(
    inbox: socket.socket, monkeypatch: pytest.MonkeyPatch, usec: str, pid: str
) -> None:
    """Not set, not a number, or another process's."""
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert Manager().watchdog == 0


def test_nobody_is_told_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run by hand, policyd tells nobody, and has no watchdog."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    manager = Manager()
    manager.ready("")
    manager.alive()
    assert manager.watchdog == 0


def test_a_manager_that_does_not_listen_is_no_trouble(inbox: socket.socket) -> None:
    """Full or gone: what is said is lost, nothing waits and nothing fails."""
    manager = Manager()
    for _ in range(10_000):
        manager.alive()
    inbox.close()
    manager.alive()
