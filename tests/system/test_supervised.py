"""Under a service manager: it is told of start, reload and end, fed as long as policyd works, and a restart loses nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.asking import ALICE, Asker, in_parallel, policy, request
from tests.system.daemon import Policyd
from tests.system.test_protocol import HAND_OVER
from tests.system.waiting import PATIENCE, wait_for

#: Restarts; the package's test does a hundred, under systemd and a real Postfix.
ROUNDS = 5


class Manager:
    """What systemd is to policyd: the other end of NOTIFY_SOCKET."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(self.path))
        self._sock.settimeout(PATIENCE)

    def environment(self, watchdog: float) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self.path), "WATCHDOG_USEC": str(int(watchdog * 1_000_000))}

    def hear(self, word: str) -> dict[str, str]:
        """The next message that begins with ``word``."""
        while True:
            found = dict(line.split("=", 1) for line in self._sock.recv(4096).decode().split("\n"))
            if word in found:
                return found

    def forget(self) -> None:
        """Read what was said so far; ends only if nothing more is said."""
        self._sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._sock.recv(4096)
        self._sock.settimeout(PATIENCE)

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    yield manager
    manager.close()


def test_the_manager_is_told(tmp_path: Path, manager: Manager) -> None:
    """READY when it listens; RELOADING, and READY again also after a reload that is refused, which the status says; STOPPING;
    and signs of life in between, which come again and again."""
    address = f"unix:{tmp_path}/sock"
    policyd = Policyd(tmp_path, policy(address), environment=manager.environment(0.3))
    with policyd:
        assert address in manager.hear("READY")["STATUS"]
        for _ in range(3):
            manager.hear("WATCHDOG")
        policyd.reload()
        assert int(manager.hear("RELOADING")["MONOTONIC_USEC"]) > 0
        assert manager.hear("READY")["STATUS"].startswith("policy ")
        policyd.reload(policy(address) + "nonsense = 1\n", refused=True)
        manager.hear("RELOADING")
        assert "reload refused" in manager.hear("READY")["STATUS"]
    manager.hear("STOPPING")


def test_a_policyd_that_hangs_gives_no_sign_of_life(tmp_path: Path, manager: Manager) -> None:
    """While it is stopped nothing comes, which is what a watchdog is for; then it goes on."""
    policyd = Policyd(tmp_path, policy(f"unix:{tmp_path}/sock"), environment=manager.environment(0.03))
    with policyd:
        manager.hear("WATCHDOG")
        policyd.signal(signal.SIGSTOP)
        wait_for(lambda: Path(f"/proc/{policyd.pid}/stat").read_text().split()[2] == "T", policyd.told)
        manager.forget()
        policyd.signal(signal.SIGCONT)
        manager.hear("WATCHDOG")


class Postfix(Asker):
    """Asks as Postfix does: on one connection, and once more, on a new one, when there is no answer."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address

    def ask_twice(self) -> str:
        asked = request()
        for attempt in range(2):
            try:
                self.send(asked)
                return self.answer()
            except (EOFError, OSError):
                assert attempt == 0, "no answer, and none on a new connection"
                self.sock.close()
                super().__init__(self.address)
        raise AssertionError


def test_restarts_lose_no_request(tmp_path: Path) -> None:
    """With its socket held open, as systemd does, policyd is restarted again and again while 20 clients ask: each request is
    answered, at the second try at the latest, and counted once."""
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(path))
        held.listen(1024)
        policyd = Policyd(
            tmp_path,
            policy(f"unix:{path}", limits=["1000000 messages per 1d"]),
            wrapper=[sys.executable, "-c", HAND_OVER, str(held.fileno()), "policyd.socket"],
            pass_fds=[held.fileno()],
        )
        stop = threading.Event()
        answered = [0] * 20

        def ask(number: int) -> None:
            with Postfix(f"unix:{path}") as client:
                while not stop.is_set():
                    assert client.ask_twice() == "DUNNO"
                    answered[number] += 1

        def restart() -> None:
            try:
                for _ in range(ROUNDS):
                    had = sum(answered)
                    wait_for(lambda had=had: sum(answered) > had + 100, policyd.told)  # type: ignore[misc]
                    policyd.stop()
                    policyd.start()
            finally:
                stop.set()

        with policyd:
            in_parallel([restart, *[lambda number=number: ask(number) for number in range(20)]])  # type: ignore[misc]
            assert policyd.used(ALICE, "messages") == sum(answered)


def test_who_has_just_connected_is_still_answered(tmp_path: Path) -> None:
    """A client that connected before the end and asks only when policyd has begun to end gets its answer: for a client that
    was cut off once already, it is the last try."""
    address = f"unix:{tmp_path}/sock"
    policyd = Policyd(tmp_path, policy(address), environment=(manager := Manager(tmp_path)).environment(30))
    with policyd, Asker(address) as early:
        early.ask()
        with Asker(address) as late:
            manager.hear("READY")
            policyd.signal(signal.SIGTERM)
            manager.hear("STOPPING")
            late.send(request())
            assert late.answer() == "DUNNO"
    manager.close()
    assert os.path.exists(policyd.database)
