"""Real nameservers on loopback: NSD, which knows zones, and unbound, which resolves through it and asks nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

import dns.exception
import dns.message
import dns.query

from tests.ports import free_port

#: Until a server answers, s.
PATIENCE = 30.0

NSD = """\
server:
    ip-address: 127.0.0.1@{port}
    username: ""
    chroot: ""
    zonesdir: "{directory}"
    database: ""
    pidfile: "{directory}/nsd.pid"
    xfrdfile: "{directory}/xfrd.state"
    zonelistfile: "{directory}/zone.list"
    xfrdir: "{directory}"
    server-count: 1
    rrl-ratelimit: 0
    rrl-whitelist-ratelimit: 0
remote-control:
    control-enable: no
zone:
    name: "."
    zonefile: "root.zone"
"""

# The root zone is ours, so no question can leave this machine.
UNBOUND = """\
server:
    interface: 127.0.0.1@{port}
    access-control: 127.0.0.0/8 allow
    do-daemonize: no
    do-not-query-localhost: no
    do-ip6: no
    username: ""
    chroot: ""
    directory: "{directory}"
    pidfile: "{directory}/unbound.pid"
    use-syslog: no
    logfile: ""
    verbosity: 0
    num-threads: 1
    module-config: "iterator"
    cache-max-ttl: 0
    cache-max-negative-ttl: 0
remote-control:
    control-enable: no
stub-zone:
    name: "."
    stub-addr: 127.0.0.1@{upstream}
"""


class RealServer:
    """A server process in the foreground, which answers once it is entered."""

    def __init__(self, directory: Path, program: str, config: str, *arguments: str, **more: object) -> None:
        self.directory = directory
        self.port = free_port()
        self._file = directory / f"{program}.conf"
        self._file.write_text(config.format(port=self.port, directory=directory, **more))
        self._command = [f"/usr/sbin/{program}", *arguments, "-c", str(self._file)]
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory / f"{program}.log"

    @property
    def nameserver(self) -> str:
        """As the configuration of policyd names it."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start it and wait for its first answer."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + PATIENCE
        while True:
            try:
                dns.query.udp(
                    dns.message.make_query("localhost", "A"), "127.0.0.1", timeout=0.2, port=self.port
                )
                return self
            except (dns.exception.DNSException, OSError):
                said = self._log.read_text(errors="replace")
                assert self._process.poll() is None, said
                assert time.monotonic() < end, said

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGCONT)
            self._process.terminate()
            self._process.wait(PATIENCE)
            self._process = None

    def freeze(self) -> None:
        """It listens and says nothing."""
        assert self._process
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        assert self._process
        os.killpg(self._process.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()


def nsd(directory: Path, records: str) -> RealServer:
    """NSD with one zone, the root; ``records`` in the form of zone files."""
    head = "$ORIGIN .\n$TTL 300\n@ SOA ns. root. 1 3600 600 86400 120\n@ NS ns.\nns A 127.0.0.1\n"
    (directory / "root.zone").write_text(head + records)
    return RealServer(directory, "nsd", NSD, "-d")


def unbound(directory: Path, upstream: RealServer) -> RealServer:
    """unbound, which has everything from ``upstream`` and keeps none of it."""
    return RealServer(directory, "unbound", UNBOUND, "-d", upstream=upstream.port)
