"""The figure of ``policyctl learn``: time, memory and counts, and what a policyd that runs meanwhile answers."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from array import array
from pathlib import Path
from typing import Any

from bench import load, maillog, servers, traffic
from bench.figures import Say, Scale, judged
from bench.servers import Server, Trouble

MOST_SECONDS, MOST_MEMORY, MOST_WAIT = 600, 300, 100
#: Requests a second that policyd is asked meanwhile.
RATE = 50

CHECKS = """
[[check]]
use = "allow"

[[check]]
use = "bans"

[[check]]
use = "quota"
for = "submission"

[[check]]
use = "quota"
name = "whole-server"
for = "submission"
per = "server"
limits = ["5000 recipients per 1h"]
mode = "shadow"

[[detect]]
name = "hijacked"
when = "more than 8 client networks per user in 10m"
then = "suspend"

[[detect]]
name = "address-book-run"
when = "more than 100 new recipients per user in 1h"
then = "suspend"

[[detect]]
name = "far-above"
when = "more than 10 times the usual recipients per user in 1h, at least 100"
"""


class _Asking(threading.Thread):
    """Asks policyd at a low rate until it is told to end, and keeps how long each answer took."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server
        self.enough = threading.Event()
        #: What each answer took, ms.
        self.waits = array("d")
        self.wrong: dict[str, int] = {}

    def run(self) -> None:
        while not self.enough.is_set():
            users = traffic.active_users(1000, 1000)
            result = load.run(self._server.address, users, connections=5, seconds=2, rate=RATE)
            self.waits.extend(each * 1000 for each in result.latency)
            for verb, times in result.verbs.items():
                if verb != "DUNNO":
                    self.wrong[verb] = self.wrong.get(verb, 0) + times


def _learn(server: Server, directory: Path, log: Path) -> tuple[float, float, float, dict[str, Any], _Asking]:
    """Seconds, processor time of that in s, memory in MB, what was printed, and what was asked meanwhile.

    :raises Trouble: it failed.
    """
    asking = _Asking(server)
    asking.start()
    began = time.monotonic()
    with (directory / "learned.json").open("wb") as output, (directory / "learn.log").open("wb") as errors:
        process = subprocess.Popen(
            servers.policyctl(directory, "learn", "--json", str(log)),
            cwd=servers.ROOT,
            env=servers.environment(),
            stdout=output,
            stderr=errors,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            asking.enough.set()
            raise
    took = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    asking.enough.set()
    asking.join()
    if process.returncode:
        raise Trouble(
            f"policyctl learn ended with {process.returncode}: {(directory / 'learn.log').read_text()[:300]}"
        )
    if asking.wrong:
        raise Trouble(f"policyd answered {asking.wrong} meanwhile")
    processor = usage.ru_utime + usage.ru_stime
    return (
        took,
        processor,
        usage.ru_maxrss * 1024 / 1e6,
        json.loads((directory / "learned.json").read_text()),
        asking,
    )


def learn(scale: Scale, work: Path, say: Say) -> None:
    """policyctl learn of a log of ten million lines: time, memory, counts, and what policyd answers meanwhile."""
    directory, log = work / "learn", work / "mail.log"
    truth = maillog.write(log, scale.log_lines)
    say(f"log: {truth.lines:,} lines, {log.stat().st_size / 1e6:,.0f} MB")
    with servers.policyd(directory, "policyd", CHECKS) as server:
        for time_of in ("first", "again"):
            took, processor, memory, told, asking = _learn(server, directory, log)
            say(
                f"{time_of}: {took:.0f} s (bar: {MOST_SECONDS}: {judged(took <= MOST_SECONDS)}), {processor:.0f} s CPU, "
                f"{truth.lines / took:,.0f} lines/s; "
                f"memory {memory:.0f} MB (bar: {MOST_MEMORY} MB: {judged(memory <= MOST_MEMORY)})"
            )
            counts = (told["lines"], told["messages"], told["recipients"], told["accounts"])
            true = (truth.lines, truth.messages, truth.recipients, len(truth.accounts))
            what = "{:,} lines, {:,} messages, {:,} recipients, {:,} accounts".format(*counts)
            say(f"{time_of}: {what}: the log's: {judged(counts == true)}")
            written, waits = told["written"], sorted(asking.waits)
            most = waits[len(waits) * 999 // 1000]
            say(
                f"{time_of}: {written['tiers']:,} accounts into their tier, {written['recipients']:,} recipients remembered; "
                f"of {len(waits):,} requests that policyd was asked meanwhile it answered 999 in 1,000 within {most:.0f} ms "
                f"(bar: {MOST_WAIT} ms: {judged(most <= MOST_WAIT)}), the last one after {waits[-1]:.0f} ms"
            )
    say(
        f"again: it changed nothing: {judged(not (written['tiers'] or written['others'] or written['recipients']))}"
    )
    log.unlink()
