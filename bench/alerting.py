"""What alerts cost the answers: policyd whose channels are all in trouble beside one that tells nobody, with the same events."""

from __future__ import annotations

import contextlib
import http.server
import json
import sqlite3
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench import servers
from bench.figures import Say, Scale, judged, load, rest, spread
from bench.servers import Trouble
from tests.ports import free_port

#: Few accounts near their limit all the time, so that there are events all the time.
USERS, RATE, CONNECTIONS = 50, 500, 50
CHECKS = """
[[check]]
use = "bans"

[[check]]
use = "quota"
for = "submission"
limits = ["44 messages per 4s"]
"""
CHANNELS = """
[alerts]
timeout = "2s"
smtp = "127.0.0.1:{refusing}"
hook = "/nonexistent/hook.sock"
"""
CHANNEL = """
[[alert]]
to = "{to}"
name = "{name}"
repeat_after = "1m"
"""


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/slow":
            time.sleep(1.5)
        self.send_response(500 if self.path == "/broken" else 204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def _receiver() -> Iterator[str]:
    """A webhook: /good, /slow, /broken, as the path says; its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _channels(url: str) -> str:
    targets = {
        "good": f"{url}/good",
        "slow": f"{url}/slow",
        "broken": f"{url}/broken",
        "refusing": f"http://127.0.0.1:{free_port()}/",
        "mail": "mailto:root",
        "command": "exec:/bin/true",
    }
    channels = "".join(CHANNEL.format(name=name, to=to) for name, to in targets.items())
    return CHANNELS.format(refusing=free_port()) + channels


def alerts(scale: Scale, work: Path, say: Say) -> None:
    """p99 of answers while every kind of channel is in trouble, against a policyd without channels, both with the same events."""
    options = ("--connections", CONNECTIONS, "--rate", RATE, "--seconds", scale.seconds, "--users", USERS)
    p99: dict[str, list[float]] = {"without": [], "with": []}
    micros: dict[str, list[float]] = {"without": [], "with": []}
    ratios = []
    directory = work / "policyd-alerts"
    with (
        _receiver() as url,
        servers.policyd(work / "policyd-quiet", "policyd without alerts", CHECKS) as quiet,
        servers.policyd(directory, "policyd with alerts", CHECKS + _channels(url)) as telling,
    ):
        for server in (quiet, telling):
            rest(server)
            load(server, *options)
        for turn in range(2 * scale.rounds):
            # Who is first changes: what the round before left on the disk meets both alike.
            for name, server in sorted({"without": quiet, "with": telling}.items(), reverse=bool(turn % 2)):
                used = server.cpu_seconds()
                result = load(server, *options)
                micros[name].append((server.cpu_seconds() - used) / result["answered"] * 1e6)
                p99[name].append(result["p99"])
            ratios.append(p99["with"][-1] / p99["without"][-1])
        events, states = _counted(directory / "policyd.db")
    if not events or not states.get("sent") or not states.get("waits"):
        raise Trouble(f"{events} events and alerts {json.dumps(states)}: nothing was told, or nothing failed")
    say(
        f"{RATE} requests/s, {events} events, alerts: {states.get('sent', 0)} sent, {states.get('waits', 0)} wait"
    )
    middle = statistics.median(p99["with"]) / statistics.median(p99["without"])
    say(
        f"p99 without {spread(p99['without'], '.1f')} ms, with {spread(p99['with'], '.1f')} ms, of neighbours "
        f"{spread(ratios)}   bar unchanged (medians at most 1.1): {middle:.2f} {judged(middle <= 1.1)}"
    )
    say(
        f"processor time of a request: without {spread(micros['without'], '.0f')} us, with {spread(micros['with'], '.0f')} us"
    )


def _counted(database: Path) -> tuple[int, dict[str, int]]:
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        (events,) = connection.execute("SELECT count(*) FROM event").fetchone()
        return events, dict(connection.execute("SELECT state, count(*) FROM alert GROUP BY state"))
