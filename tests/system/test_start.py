"""The start and the end of the process: signals that come early, standard files that are closed or that nobody reads."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.asking import Asker, policy, request
from tests.system.daemon import Policyd
from tests.system.waiting import PATIENCE, wait_for

#: Runs policyd, and sends itself a signal when it imports the first, second, ... of these modules: each is a stage of the
#: start, from the first line of ours to the last before it listens.
AT = (
    "argparse",
    "policyd.messages",
    "asyncio",
    "twisted.internet.asyncioreactor",
    "policyd.service",
    "BUILT",
    "READY",
)
SIGNALLED = """
import os, sys
at, number = sys.argv.pop(1), int(sys.argv.pop(1))
class Signal:
    sent = False
    def find_spec(self, name, path=None, target=None):
        if name == at and not self.sent:
            Signal.sent = True
            os.kill(os.getpid(), number)
for name in [name for name in sys.modules if name == at]:
    del sys.modules[name]
sys.meta_path.insert(0, Signal())
import policyd.__main__
if at == "BUILT":
    built = policyd.__main__._EarlySignals.built
    policyd.__main__._EarlySignals.built = lambda self: (built(self), os.kill(os.getpid(), number))
elif at == "READY":
    import policyd.listen
    open_ = policyd.listen.Listening._open
    async def opened(self, listener):
        os.kill(os.getpid(), number)
        return await open_(self, listener)
    policyd.listen.Listening._open = opened
sys.exit(policyd.__main__.main())
"""


class Signalled(Policyd):
    """A policyd that sends itself a signal at a stage of its start."""

    def __init__(self, directory: Path, at: str, number: signal.Signals) -> None:
        super().__init__(directory, policy(f"unix:{directory}/sock"))
        self.at, self.number = at, number
        self.program = ["-c", SIGNALLED, at, str(int(number))]


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_end_during_the_start_is_an_end_in_order(tmp_path: Path, at: str, number: signal.Signals) -> None:
    """Exit code 0, no traceback, no socket left behind; and the next start finds all well."""
    policyd = Signalled(tmp_path, at, number)
    ended = policyd.try_start()
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "ready" not in ended.stderr or at == "READY"
    assert not (tmp_path / "sock").exists()
    with Policyd(tmp_path, policy(f"unix:{tmp_path}/sock")), Asker(f"unix:{tmp_path}/sock") as asker:
        assert asker.ask() == "DUNNO"


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_reload_during_the_start_comes_after_it(tmp_path: Path, at: str, number: signal.Signals) -> None:
    """It ends nothing, and is not forgotten: what was changed meanwhile may have been read before."""
    with Signalled(tmp_path, at, number) as policyd, Asker(f"unix:{tmp_path}/sock") as asker:
        assert asker.ask() == "DUNNO"
        if number == signal.SIGHUP:
            policyd.wait_told("reloaded: policy")
        assert policyd.told().count(" ready on ") == 1


def test_asked_to_end_twice(tmp_path: Path) -> None:
    """An impatient admin changes nothing: it ends in order, with exit code 0 and no traceback."""
    policyd = Policyd(tmp_path, policy(f"unix:{tmp_path}/sock"))
    policyd.start()
    with Asker(f"unix:{tmp_path}/sock") as asker:
        asker.ask()
        for _ in range(3):
            policyd.signal(signal.SIGTERM)
            policyd.signal(signal.SIGINT)
        policyd.stop()
    assert "Traceback" not in policyd.told()
    assert policyd.told().splitlines()[-1] == "INFO policyd: policyd ended"
    assert not Path(f"{policyd.database}-wal").exists()


class Unread(Policyd):
    """A policyd whose standard error is a pipe that nobody reads until the test does."""

    def __init__(self, directory: Path, configuration: str, full: bool) -> None:
        super().__init__(directory, configuration)
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)
        if full:
            os.set_blocking(self.writer, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(self.writer, b"\n")
            os.set_blocking(self.writer, True)
        os.set_blocking(self.reader, False)
        self._text = ""

    def run(self) -> subprocess.Popen[bytes]:
        """Start it, and wait for nothing."""
        return subprocess.Popen(
            [sys.executable, "-m", "policyd", "--config", str(self.config)],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.writer,
        )

    def told(self) -> str:
        """What it has written so far; by this it is read."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reader, 65536):
                self._text += data.decode()
        return self._text.lstrip("\n")

    def close(self) -> None:
        """Nobody will read any more."""
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture(params=[False, True])
def unread(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Unread]:
    policyd = Unread(tmp_path, policy(f"unix:{tmp_path}/sock"), request.param)
    yield policyd
    policyd.close()


def flood(address: str, count: int) -> None:
    """Connections that each cost a message."""
    for number in range(count):
        with Asker(address) as asker:
            asker.send(b"junk %d\n\n" % number)
            assert asker.at_end()


def test_messages_that_nobody_reads_delay_no_answer(tmp_path: Path, unread: Unread) -> None:
    """It starts, answers and takes junk though standard error is full; whoever reads later finds every message, in order."""
    address = f"unix:{tmp_path}/sock"
    process = unread.run()
    try:
        wait_for(lambda: (tmp_path / "sock").exists() or process.poll() is not None, unread.told)
        with Asker(address) as asker:
            for _ in range(4):
                assert asker.ask() == "DUNNO"
                flood(address, 200)
        expected = r"no policy request: .*"
        wait_for(lambda: len(re.findall(expected, unread.told())) == 800, unread.told)
        lines = unread.told().splitlines()
        assert " ready on " in lines[0]
        assert len(lines) == 801
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert unread.told().splitlines()[-1] == "INFO policyd: policyd ended"
    finally:
        process.kill()
        process.wait()


def test_the_end_does_not_wait_for_a_reader_for_ever(tmp_path: Path) -> None:
    """Nobody reads, and SIGTERM ends it in order all the same; so does a start that fails."""
    policyd = Unread(tmp_path, policy(f"unix:{tmp_path}/sock"), full=True)
    try:
        process = policyd.run()
        wait_for((tmp_path / "sock").exists, lambda: "it does not listen")
        with Asker(f"unix:{tmp_path}/sock") as asker:
            asker.send(request())
            assert asker.answer() == "DUNNO"
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert policyd.query("SELECT count(*) FROM decision") == [(1,)]
        policyd.configure("nonsense = 1")
        process = policyd.run()
        assert process.wait(PATIENCE) == 1
    finally:
        process.kill()
        process.wait()
        policyd.close()


def test_nothing_of_an_error_at_the_start_is_lost(tmp_path: Path) -> None:
    """A hundred problems: a line each, on standard error, before it ends with 1."""
    policyd = Policyd(tmp_path, "".join(f"nonsense{number} = 1\n" for number in range(100)))
    ended = policyd.try_start()
    assert ended.returncode == 1
    lines = ended.stderr.splitlines()
    assert len(lines) == 100
    assert all(line.startswith("policyd: ") and "nonsense" in line for line in lines)


def test_closed_standard_files_cost_no_database(tmp_path: Path) -> None:
    """``policyd <&- >&- 2>&-``: no file of policyd's gets the number of standard error, where messages go."""
    address = f"unix:{tmp_path}/sock"
    policyd = Policyd(tmp_path, policy(address))
    policyd._wrapper = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    policyd.start(wait=False)
    try:
        wait_for((tmp_path / "sock").exists, lambda: "it does not listen")
        flood(address, 20)
        with Asker(address) as asker:
            assert asker.ask() == "DUNNO"
    finally:
        policyd.stop()
    for file in tmp_path.iterdir():
        assert b"no policy request" not in file.read_bytes(), file
    assert policyd.query("PRAGMA integrity_check") == [("ok",)]
