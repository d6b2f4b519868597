"""Listeners whose socket is taken away under them: opened anew, with the same rights, and without a restart."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from policyd.config import Listener
from policyd.errors import UserError
from policyd.listen import Listening
from tests.fakes import PATIENCE

GROUP = grp.getgrgid(os.getegid()).gr_name


def running(path: Path, scenario: Callable[[Listening, Listener], Awaitable[None]], **settings: Any) -> None:
    """Run ``scenario`` with a listener open at ``path``, on a loop of its own."""

    async def run() -> None:
        listening = Listening(SimpleNamespace(loop=asyncio.get_running_loop()))  # type: ignore[arg-type]
        listener = Listener(f"unix:{path}", "test", **settings)
        await listening.open(listener)
        try:
            await scenario(listening, listener)
        finally:
            for address in list(listening.ports):
                await listening.close(address)

    # The test itself runs within the reactor's loop.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(run())).result(PATIENCE)


def connects(path: Path) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        try:
            sock.connect(str(path))
        except OSError:
            return False
    return True


def removed(path: Path) -> None:
    """As a cleaner of temporary files does."""
    path.unlink()


def renamed(path: Path) -> None:
    """Moved away by hand."""
    path.rename(path.with_name("away"))


def stale(path: Path) -> None:
    """Another program bound it, and ended without removing it; the file may have the same number."""
    path.unlink()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def directory_made_anew(path: Path) -> None:
    """Its directory was removed with all that is in it, and is there again."""
    path.unlink()
    path.parent.rmdir()
    path.parent.mkdir()


@pytest.mark.parametrize("gone", [removed, renamed, stale, directory_made_anew])
def test_a_socket_that_is_gone_is_opened_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, gone: Callable[[Path], None]
) -> None:
    """At the next look, with group and mode as configured, and told once."""
    path = tmp_path / "run" / "sock"
    path.parent.mkdir()

    async def scenario(listening: Listening, listener: Listener) -> None:
        await listening.mend()
        assert caplog.messages == []
        gone(path)
        assert not connects(path)
        await listening.mend()
        assert connects(path)
        status = path.stat()
        assert stat.S_IMODE(status.st_mode) == 0o620
        assert status.st_gid == os.getegid()
        await listening.mend()
        assert [message.split(":")[0] for message in caplog.messages] == ["socket-gone", "socket-back"]

    running(path, scenario, mode=0o620, group=GROUP)
    assert not path.exists()


def test_rights_that_the_admin_has_changed_are_no_other_socket(tmp_path: Path) -> None:
    """chmod by hand holds until the next start."""
    path = tmp_path / "sock"

    async def scenario(listening: Listening, listener: Listener) -> None:
        path.chmod(0o600)
        await listening.mend()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    running(path, scenario)


def test_what_is_no_socket_of_ours_stays_and_is_waited_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing directory, a file, a link, another program's socket: each told once, however often it is looked at, nothing
    of it touched; and when it is gone, the socket is back."""
    path = tmp_path / "run" / "sock"
    path.parent.mkdir()

    async def scenario(listening: Listening, listener: Listener) -> None:
        path.unlink()
        path.parent.rmdir()

        async def told_once(expected: str) -> None:
            caplog.clear()
            for _ in range(3):
                await listening.mend()
            (message,) = [each for each in caplog.messages if "tried again" in each]
            assert expected in message

        await told_once("the directory does not exist")
        path.parent.mkdir()
        path.write_text("notes")
        await told_once("a file of that name that is no socket")
        assert path.read_text() == "notes"
        path.unlink()
        path.symlink_to("nowhere")
        await listening.mend()
        assert path.is_symlink()
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            other.listen(0)
            await told_once("another program listens there")
            # Its queue is full now, and nobody may wait for it.
            await told_once_more(listening)
            inode = path.stat().st_ino
        assert path.stat().st_ino == inode
        caplog.clear()
        await listening.mend()
        assert connects(path)
        assert [message.split(":")[0] for message in caplog.messages] == ["socket-back"]

    async def told_once_more(listening: Listening) -> None:
        caplog.clear()
        for _ in range(3):
            await listening.mend()
        assert caplog.messages == []

    running(path, scenario)


def test_a_listener_that_is_waited_for_can_be_closed(tmp_path: Path) -> None:
    """A reload that takes it out of the configuration ends the attempts."""
    path = tmp_path / "run" / "sock"
    path.parent.mkdir()

    async def scenario(listening: Listening, listener: Listener) -> None:
        path.unlink()
        path.parent.rmdir()
        await listening.mend()
        assert listener.address in listening.ports
        await listening.close(listener.address)
        path.parent.mkdir()
        await listening.mend()
        assert not path.exists()

    running(path, scenario)


def test_at_the_start_a_socket_of_others_is_an_error(tmp_path: Path) -> None:
    """Said in one line, and nothing is removed."""
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()

        async def scenario(listening: Listening, listener: Listener) -> None:
            raise AssertionError("it listens")

        with pytest.raises(UserError, match="another program listens there; stop it first"):
            running(path, scenario)
    assert path.exists()
