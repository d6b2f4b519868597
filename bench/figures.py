"""The rows of the table: each function measures one and gives its lines.

What is compared is measured in turns, A B A B, so that a machine that gets slower or busier meanwhile does not decide; ratios are
of neighbours in one round, and the smallest, the middle and the largest are shown.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine, servers, traffic
from bench.servers import Server, Trouble

Say = Callable[[str], None]
#: Free space that must be left when the large database is there, octets.
_SPARE = 1_000_000_000
#: A daemon counts as at rest when it used less than this share of a processor in a second.
_AT_REST = 0.05


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int
    seconds: float
    users: int
    decisions: int
    held_seconds: float
    bans: int
    #: Of a DNS in trouble, of each kind.
    trouble_seconds: float
    triplets: int
    log_lines: int


FULL = Scale(
    rounds=9,
    seconds=3.0,
    users=1_000_000,
    decisions=5_000_000,
    held_seconds=30.0,
    bans=9,
    trouble_seconds=20.0,
    triplets=5_000_000,
    log_lines=10_000_000,
)
QUICK = Scale(
    rounds=3,
    seconds=2.0,
    users=20_000,
    decisions=100_000,
    held_seconds=5.0,
    bans=3,
    trouble_seconds=6.0,
    triplets=100_000,
    log_lines=300_000,
)

CONNECTIONS = 50
#: s.
WARMING = 3.0
ACTIVE = 1_000
HELD, HELD_RATE = 1_000, 500


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """``median (min to max)``."""
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({format(min(values), form)} to {format(max(values), form)})"


def judged(met: bool) -> str:
    """Whether a bar was reached."""
    return "met" if met else "NOT MET"


def load(server: Server, *options: object) -> dict[str, Any]:
    """Run the generator against ``server``; what it measured.

    :raises Trouble: it could not, or an answer was missing or malformed.
    """
    host, port = server.address
    command = [
        sys.executable,
        "-m",
        "bench.load",
        f"{host}:{port}",
        "--stage",
        server.stage,
        *map(str, options),
    ]
    done = subprocess.run(
        command, cwd=servers.ROOT, env=servers.environment(), capture_output=True, text=True, check=False
    )
    if not done.stdout.strip():
        raise Trouble(f"{server.name}: {done.stderr.strip() or 'the load generator said nothing'}")
    result: dict[str, Any] = json.loads(done.stdout)
    if result["malformed"] or result["unanswered"]:
        raise Trouble(
            f"{server.name}: {result['malformed']} malformed answers, {result['unanswered']} requests without an answer"
        )
    return result


class Rates:
    """Requests a second of one server in each round, and the processor time that they took it."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.micros: list[float] = []

    def __str__(self) -> str:
        return (
            f"{spread(self.rates, ',.0f')} requests/s, {spread(self.micros, '.0f')} us of processor time each"
        )


def saturate(server: Server, seconds: float, population: int = ACTIVE, into: Rates | None = None) -> None:
    """Load ``server`` over 50 connections with requests all of which must pass; ``into`` takes the figures.

    :raises Trouble: something was refused, so that another thing was measured than was meant.
    """
    before = server.cpu_seconds()
    result = load(
        server,
        "--connections",
        CONNECTIONS,
        "--seconds",
        seconds,
        "--users",
        ACTIVE,
        "--population",
        population,
    )
    if set(result["verbs"]) != {"DUNNO"} or result["closed"]:
        raise Trouble(f"{server.name} answered {result['verbs']} and closed {result['closed']} connections")
    if into is not None:
        into.rates.append(result["rate"])
        into.micros.append((server.cpu_seconds() - before) / result["answered"] * 1e6)


def rest(server: Server, patience: float = 60.0) -> None:
    """Wait until ``server`` has done what it does after its start, or say that it has not."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        before = server.cpu_seconds()
        time.sleep(1)
        if server.cpu_seconds() - before < _AT_REST:
            return
    print(
        f"bench: {server.name} is still busy {patience:.0f} s after its start; measured all the same",
        file=sys.stderr,
    )


@contextlib.contextmanager
def work_directory(parent: Path) -> Iterator[Path]:
    """A directory for the databases, removed afterwards."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as name:
        yield Path(name)


def throughput(scale: Scale, work: Path, say: Say) -> None:
    """Requests a second against the null server and the peers, in turns."""
    peers = (
        (servers.rate_limit, "policyd-rate-limit", 8, 15),
        (servers.postfwd, "postfwd1", 4, 6),
    )
    starts = [(servers.policyd, "policyd"), *((start, name) for start, name, _, _ in peers)]
    missing: list[str] = []
    with contextlib.ExitStack() as stack:
        null = stack.enter_context(servers.null_server(work))
        running = [null]
        for start, name in starts:
            try:
                running.append(stack.enter_context(start(work / name)))
            except Trouble as trouble:  # the others can be measured all the same
                missing.append(str(trouble))
        for server in running:
            rest(server)
        rates = {server.name: Rates() for server in running}
        for server in running:
            # Connections, caches, and the first rows of each login: it takes some ten thousand requests to meet them all.
            saturate(server, WARMING)
        for _ in range(scale.rounds):
            for server in running:
                saturate(server, scale.seconds, into=rates[server.name])
    for server in running:
        counts = "" if server is null else f", counted at {server.stage}"
        say(f"{server.name:<20}{rates[server.name]}{counts}")
    say(f"{'disk meanwhile':<20}{machine.fdatasync(work)}")
    mine = rates.get("policyd")
    for name, bar, aim in [(null.name, 0.35, 0.5), *((name, bar, aim) for _, name, bar, aim in peers)]:
        if mine and name in rates:
            ratios = [a / b for a, b in zip(mine.rates, rates[name].rates, strict=True)]
            met = judged(statistics.median(ratios) >= bar)
            say(f"policyd / {name:<20}{spread(ratios)}   bar {bar}, aim {aim}: {met}")
    if missing:
        raise Trouble("; ".join(missing))


def size(scale: Scale, work: Path, say: Say) -> None:
    """The same rate with a large database as with an empty one; resident memory."""
    from bench import fill

    needed = fill.size_estimate(scale.users, scale.decisions)
    free = shutil.disk_usage(work).free
    if free < needed + _SPARE:
        raise Trouble(
            f"{work} has {free / 1e9:.1f} GB free, {(needed + _SPARE) / 1e9:.1f} are needed; name another --directory"
        )
    large = work / "policyd-large"
    large.mkdir()
    began = time.monotonic()
    fill.fill(large / "policyd.db", scale.users, scale.decisions)
    octets = (large / "policyd.db").stat().st_size
    say(
        f"{scale.users:,} users, {scale.decisions:,} decisions: {octets / 1e9:.2f} GB, filled in {time.monotonic() - began:.0f} s"
    )
    with (
        servers.policyd(work / "policyd-empty", "policyd, empty database") as empty,
        servers.policyd(large, "policyd, large database") as full,
    ):
        both = (empty, full)
        for server in both:
            rest(server)
            saturate(server, min(1.0, scale.seconds), scale.users)
        rates = {server.name: Rates() for server in both}
        for turn in range(scale.rounds):
            # Who comes first changes, because the disk is busier right after the other one.
            for server in both if turn % 2 == 0 else reversed(both):
                saturate(server, scale.seconds, scale.users, rates[server.name])
        now, most = full.memory()
    for server in both:
        say(f"{server.name:<26}{rates[server.name]}")
    ratios = [a / b for a, b in zip(rates[full.name].rates, rates[empty.name].rates, strict=True)]
    say(f"large / empty             {spread(ratios)}   bar 0.85: {judged(statistics.median(ratios) >= 0.85)}")
    say(
        f"resident memory           {now:.0f} MB, at its highest {most:.0f} MB   bar 150 MB: {judged(now < 150)}"
    )
    _held(scale, large, say)


def _held(scale: Scale, directory: Path, say: Say) -> None:
    with servers.policyd(directory) as server:
        rest(server)
        result = load(
            server,
            "--connections",
            HELD,
            "--rate",
            HELD_RATE,
            "--seconds",
            scale.held_seconds,
            "--population",
            scale.users,
        )
    say(
        f"{HELD:,} connections held, {HELD_RATE} requests/s for {scale.held_seconds:.0f} s: "
        f"p50 {result['p50']:.1f} ms, p99 {result['p99']:.1f} ms, slowest {result['max']:.1f} ms, "
        f"{result['closed']} connections closed by policyd   bar p99 50 ms, none closed: "
        f"{judged(result['p99'] < 50 and not result['closed'])}"
    )


def held(scale: Scale, work: Path, say: Say) -> None:
    """Latency at 500 requests a second over 1,000 connections; after ``size`` that is done on the large database."""
    _held(scale, work / "policyd-held", say)


def _timed(command: list[str]) -> float:
    begin = time.perf_counter()
    done = subprocess.run(
        command, cwd=servers.ROOT, env=servers.environment(), capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - begin
    if done.returncode:
        raise Trouble(f"{' '.join(command[1:])} ended with {done.returncode}: {done.stderr.strip()}")
    return took


def ban(scale: Scale, work: Path, say: Say) -> None:
    """From starting "policyctl ban" to the first refused request, and "policyctl --help"."""
    from bench.load import Connections, Result

    directory = work / "policyd-ban"
    until_refused, command_took = [], []
    with servers.policyd(directory) as server:
        rest(server)
        for number in range(scale.bans):
            user = traffic.user_name(number)
            result = Result()
            line = Connections(server.address, 1, traffic.requests([user], traffic.END_OF_MESSAGE), result)
            try:
                _ask(line, result)
                if set(result.verbs) != {"DUNNO"}:
                    raise Trouble(f"{user} is refused before the ban: {dict(result.verbs)}")
                begin = time.perf_counter()
                process = subprocess.Popen(
                    servers.policyctl(directory, "ban", "user", user, "--reason", "benchmark", "--force"),
                    cwd=servers.ROOT,
                    env=servers.environment(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
                # Asked all the time, so that what is timed is the ban and not the pause before the next mail.
                while set(result.verbs) == {"DUNNO"} and time.perf_counter() < begin + 10:
                    _ask(line, result)
                    time.sleep(0.002)
                until_refused.append(time.perf_counter() - begin)
                _, said = process.communicate(timeout=30)
                command_took.append(time.perf_counter() - begin)
                if process.returncode or set(result.verbs) == {"DUNNO"}:
                    raise Trouble(
                        f"policyctl ban ended with {process.returncode} and did not bind: {said.decode().strip()}"
                    )
            finally:
                line.close()
        help_took = [_timed(servers.policyctl(directory, "--help")) for _ in range(max(3, scale.bans))]
    met = judged(max(until_refused) < 0.5)
    say(f"policyctl ban, until the next request is refused   {spread(until_refused)} s   bar 0.5 s: {met}")
    say(f"policyctl ban, the whole command                   {spread(command_took)} s")
    met = judged(statistics.median(help_took) < 0.2)
    say(f"policyctl --help                                   {spread(help_took)} s   bar 0.2 s: {met}")


def _ask(line: Any, result: Any) -> None:
    """One request on the only connection of ``line``, and its answer."""
    for fd in line.open():
        line.ask(fd, time.perf_counter())
    deadline = time.monotonic() + 10
    while line.waiting and time.monotonic() < deadline:
        for _ in line.answered(0.5):
            pass
    if result.malformed or result.closed or line.waiting:
        raise Trouble("policyd did not answer as it must")


FIGURES: dict[str, Callable[[Scale, Path, Say], None]] = {
    "throughput": throughput,
    "size": size,
    "held": held,
    "ban": ban,
}
