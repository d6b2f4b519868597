"""policyd as a process of its own, and the policyctl that goes with it."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.system.waiting import PATIENCE, wait_for

ROOT = Path(__file__).parents[2]


class Policyd:
    """One daemon with its configuration, database and logs in ``directory``; a context manager.

    :param policy: the configuration without [store] and [log].
    :param database: where the database is, if not in ``directory``.
    :param store: further lines of [store].
    :param environment: further variables for the daemon and for policyctl.
    :param wrapper: a command that starts the daemon as its last act, put before the daemon's own.
    """

    def __init__(
        self,
        directory: Path,
        policy: str,
        *,
        database: Path | None = None,
        store: str = "",
        environment: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.directory = directory
        self.config = directory / "policyd.toml"
        self.database = database or directory / "policyd.db"
        self._store = store
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        self._wrapper = list(wrapper)
        #: What Python runs.
        self.program = ["-m", "policyd"]
        self._pass_fds = tuple(pass_fds)
        self.decisions = directory / "decisions.log"
        self.messages = directory / "messages"
        self.configure(policy)
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self, policy: str) -> None:
        """Write another configuration; it holds from the next start or reload."""
        # Tables at the end: the policy may begin with keys.
        self.config.write_text(
            f'{policy}\n[store]\nurl = "sqlite:{self.database}"\n{self._store}\n'
            f'[log]\ndecisions = ["file:{self.decisions}"]\n'
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.stop()

    @property
    def pid(self) -> int:
        """The process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether the process that was started is still there."""
        return self._process is not None and self._process.poll() is None

    def told(self) -> str:
        """What it has written to stderr so far, over all its starts."""
        return self.messages.read_text() if self.messages.exists() else ""

    def wait_told(self, pattern: str, times: int = 1) -> None:
        """Wait until ``pattern`` stands in its messages, so many times."""
        wait_for(lambda: len(re.findall(pattern, self.told())) >= times, self.told)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def resident(self) -> int:
        """Resident memory of the process, octets."""
        found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        assert found
        return int(found[1]) * 1024

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """What the database answers to a statement that only reads."""
        connection = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=PATIENCE)
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    def start(self, *, wait: bool = True) -> None:
        """Start it and wait until it listens."""
        assert self._process is None
        begun = self.messages.stat().st_size if self.messages.exists() else 0
        with open(self.messages, "ab") as messages:
            process = subprocess.Popen(
                [*self._wrapper, sys.executable, *self.program, "--config", str(self.config)],
                env=self._environment,
                pass_fds=self._pass_fds,
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
            )
        self._process = process
        if not wait:
            return

        def told() -> str:
            return self.messages.read_text()[begun:]

        try:
            wait_for(lambda: re.search(r"\bpolicyd \S+ ready\b", told()) or process.poll() is not None, told)
            assert process.poll() is None, told()
        except AssertionError:
            self.kill()
            raise

    def reload(self, policy: str | None = None, *, refused: bool = False) -> None:
        """Put another policy into force, or the file as it is, without a restart; ``refused`` if it is to be refused."""
        begun = self.messages.stat().st_size
        if policy is not None:
            self.configure(policy)
        self.signal(signal.SIGHUP)

        def told() -> str:
            return self.messages.read_text()[begun:]

        wait_for(lambda: re.search(r"\breload(ed|\srefused: policy \S+ stays)", told()), told)
        assert ("reloaded:" in told()) is not refused, told()

    def stop(self) -> None:
        """End it in order; that is to succeed."""
        assert self._process is not None
        process, self._process = self._process, None
        process.terminate()
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        assert code == 0, self.messages.read_text()

    def kill(self) -> None:
        """End it as a power cut would: kill -9."""
        assert self._process is not None
        process, self._process = self._process, None
        process.kill()
        process.wait()

    def ctl(self, *arguments: str, code: int = 0, stdin: str = "") -> str:
        """What policyctl prints; ``code`` is the exit code that it must have."""
        done = self.try_ctl(*arguments, stdin=stdin)
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def try_ctl(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """A policyctl that has ended, however it did."""
        return subprocess.run(
            [sys.executable, "-m", "policyd.cli", "--config", str(self.config), *arguments],
            env=self._environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    def try_start(self) -> subprocess.CompletedProcess[str]:
        """A policyd that is expected to refuse and end, once it has."""
        return subprocess.run(
            [sys.executable, *self.program, "--config", str(self.config)],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def ctl_json(self, *arguments: str) -> Any:
        """The same with --json, read."""
        return json.loads(self.ctl(*arguments, "--json"))

    def used(self, user: str, unit: str, window: str = "1d") -> int:
        """What ``quota show`` says is used up of the user's limit of that unit and window."""
        lengths = {"1h": 3_600_000, "1d": 86_400_000}
        limits = self.ctl_json("quota", "show", user)["limits"]
        (found,) = [
            each
            for each in limits
            if each["scope"] == "user"
            and each["unit"].partition("/")[0] == unit
            and each["window_ms"] == lengths[window]
        ]
        return int(found["used"])
