"""Starts what is measured, each with a configuration of its own in a temporary directory, and ends it again.

All listen on TCP on 127.0.0.1, because postfwd and policyd-rate-limit both can. Each is set up with two limits per login
that are never reached.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench import traffic
from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
PER_HOUR, PER_DAY = 1_000_000, 5_000_000
#: How long a server may take to start and to end, s. A large database is opened and closed within it.
START, STOP = 30.0, 60.0


class Trouble(Exception):
    """Something cannot be measured; the text says what and why."""


class Server:
    """A server that runs: where it listens, and how to end it."""

    def __init__(self, name: str, port: int, stage: str, pid: int) -> None:
        self.name = name
        self.address = ("127.0.0.1", port)
        #: The stage at which it counts.
        self.stage = stage
        self.pid = pid

    def alive(self) -> bool:
        """Whether the process is still there."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def cpu_seconds(self) -> float:
        """The processor time it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> tuple[float, float]:
        """Resident memory now and at its highest, in MB (of 1,000,000 octets)."""
        values = {}
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name in {"VmRSS", "VmHWM"}:
                values[name] = int(value.split()[0]) * 1024 / 1e6
        return values["VmRSS"], values["VmHWM"]


def environment() -> dict[str, str]:
    """The environment of our own processes: they find this checkout's policyd and bench."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }


def _await(server: Server, log: Path, process: subprocess.Popen[bytes] | None = None) -> None:
    """Return once ``server`` takes connections."""
    deadline = time.monotonic() + START
    while True:
        if (process is not None and process.poll() is not None) or not server.alive():
            raise Trouble(f"{server.name} ended at once: {_tail(log)}")
        with contextlib.suppress(OSError), socket.create_connection(server.address, timeout=1):
            return
        if time.monotonic() > deadline:
            raise Trouble(f"{server.name} does not listen after {START:.0f} s: {_tail(log)}")
        time.sleep(0.05)


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except FileNotFoundError:
        lines = []
    return " / ".join(lines[-3:]) or "it says nothing"


@contextlib.contextmanager
def _child(
    name: str, port: int, stage: str, command: list[str], log: Path, end: int = signal.SIGTERM
) -> Iterator[Server]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=log.parent, env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    server = Server(name, port, stage, process.pid)
    try:
        _await(server, log, process)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(end)
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            print(f"bench: {name} did not end within {STOP:.0f} s and was killed", file=sys.stderr)


@contextlib.contextmanager
def null_server(directory: Path) -> Iterator[Server]:
    """:mod:`bench.nullserver`."""
    port = free_port()
    command = [sys.executable, "-m", "bench.nullserver", str(port)]
    with _child("null server", port, traffic.END_OF_MESSAGE, command, directory / "null.log") as server:
        yield server


#: The checks of policyd where nothing else is measured.
CHECKS = """
[[check]]
use = "allow"

[[check]]
use = "bans"

[[check]]
use = "quota"
for = "submission"
"""


def policyd_config(directory: Path, port: int, checks: str = CHECKS) -> Path:
    """Write a configuration for policyd with its data in ``directory``, and with ``checks``; its path."""
    config = directory / "policyd.toml"
    config.write_text(
        f"""\
[site]
domains = ["{traffic.DOMAIN}"]
networks = ["127.0.0.0/8"]

[server]
listen = ["inet:127.0.0.1:{port}"]

[store]
url = "sqlite:///{directory}/policyd.db"
durability = "full"

[log]
decisions = ["file:{directory}/decisions.log"]

[tiers]
default = "bench"
learned = "bench"

[tier.bench]
limits = ["{PER_HOUR} recipients per 1h", "{PER_DAY} recipients per 1d"]
{checks}""",
        encoding="utf-8",
    )
    return config


@contextlib.contextmanager
def policyd(directory: Path, name: str = "policyd", checks: str = CHECKS) -> Iterator[Server]:
    """policyd with its database in ``directory``, which is made when it is not there.

    :param checks: the ``[[check]]`` sections of its configuration, and others that it has not.
    """
    directory.mkdir(exist_ok=True)
    port = free_port()
    config = policyd_config(directory, port, checks)
    command = [sys.executable, "-m", "policyd", "--config", str(config)]
    with _child(name, port, traffic.END_OF_MESSAGE, command, directory / "policyd.log") as server:
        yield server


def policyctl(directory: Path, *words: str) -> list[str]:
    """The command line of policyctl for the policyd in ``directory``."""
    return [sys.executable, "-m", "policyd.cli", "--config", str(directory / "policyd.toml"), *words]


def ban_client(directory: Path, address: str) -> None:
    """Have the policyd in ``directory`` refuse a client.

    :raises Trouble: policyctl could not.
    """
    command = policyctl(directory, "ban", "client", address, "--reason", "benchmark", "--force")
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise Trouble(f"policyctl ban ended with {done.returncode}: {done.stderr.strip()}")


@contextlib.contextmanager
def rate_limit(directory: Path) -> Iterator[Server]:
    """policyd-rate-limit on SQLite with its shipped settings, but for addresses, limits and debugging output (off)."""
    program = shutil.which("policyd-rate-limit")
    if program is None:
        raise Trouble(
            "policyd-rate-limit is not installed (apt-get install --no-install-recommends policyd-rate-limit)"
        )
    directory.mkdir(exist_ok=True)
    port = free_port()
    user = pwd.getpwuid(os.getuid()).pw_name
    config = directory / "rate-limit.yaml"
    config.write_text(
        f"""\
debug: False
user: "{user}"
group: "{user}"
pidfile: "{directory}/pid"
backend: 0
sqlite_config:
    database: "{directory}/db.sqlite3"
SOCKET: ["127.0.0.1", {port}]
limits:
    - [{PER_HOUR}, 3600]
    - [{PER_DAY}, 86400]
limits_by_id: {{}}
limit_by_sasl: True
limit_by_sender: False
limit_by_ip: False
limited_networks: []
success_action: "dunno"
fail_action: "defer_if_permit Rate limit reach, retry later"
db_error_action: "defer_if_permit database error"
report: False
delay_to_close: 300
""",
        encoding="utf-8",
    )
    # It ends cleanly on SIGUSR1 only.
    with _child(
        "policyd-rate-limit",
        port,
        traffic.RCPT,
        [program, "--file", str(config)],
        directory / "log",
        signal.SIGUSR1,
    ) as server:
        yield server


@contextlib.contextmanager
def postfwd(directory: Path) -> Iterator[Server]:
    """postfwd1, counting in memory, without DNS, request cache, rule statistics and log: as fast as it can be set."""
    program = shutil.which("postfwd1", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise Trouble("postfwd1 is not installed (apt-get install --no-install-recommends postfwd)")
    directory.mkdir(exist_ok=True)
    port = free_port()
    user = pwd.getpwuid(os.getuid()).pw_name
    rules = directory / "postfwd.cf"
    rules.write_text(
        f"id=HOUR; sasl_username=~/./; action=rcpt(sasl_username/{PER_HOUR}/3600/450 4.7.1 limit)\n"
        f"id=DAY; sasl_username=~/./; action=rcpt(sasl_username/{PER_DAY}/86400/450 4.7.1 limit)\n",
        encoding="utf-8",
    )
    pid_file, log = directory / "postfwd.pid", directory / "postfwd.log"
    command = [program, "--daemon", "--perfmon", "--nodns", "--norulelog", "--norulestats", "--cache", "0"]
    command += ["--file", str(rules), "--interface", "127.0.0.1", "--port", str(port)]
    command += ["--user", user, "--group", user, "--pidfile", str(pid_file)]
    with log.open("ab") as output:
        # It listens only as a daemon, so it is no child of ours and is known by its pid file.
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False, timeout=START
        )
    deadline = time.monotonic() + START
    while not (pid_file.is_file() and pid_file.read_text(encoding="ascii").strip().isdecimal()):
        if time.monotonic() > deadline:
            raise Trouble(f"postfwd1 did not start: {_tail(log)}")
        time.sleep(0.05)
    server = Server("postfwd1", port, traffic.END_OF_MESSAGE, int(pid_file.read_text(encoding="ascii")))
    try:
        _await(server, log)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGTERM)
        deadline = time.monotonic() + 5
        while server.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        if server.alive():
            os.kill(server.pid, signal.SIGKILL)
