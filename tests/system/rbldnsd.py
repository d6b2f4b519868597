"""A real rbldnsd on loopback: blocklists as their operators serve them, which can be changed while it runs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import dns.exception
import dns.message
import dns.query

from tests.ports import free_port
from tests.system.waiting import wait_for

#: What is not listed now may be listed at once.
SOA = "$SOA 1 ns.invalid root.invalid 0 3600 600 86400 0\n"


class Rbldnsd:
    """Serves ``lists``: by zone, its datasets, ``(type, lines)``."""

    def __init__(self, directory: Path, lists: Mapping[str, list[tuple[str, str]]]) -> None:
        self.directory = directory
        self.port = free_port()
        # Started by root, it goes to an account of its own, which has to read the files.
        directory.chmod(0o755)
        self._zones: list[str] = []
        self._log = directory / "rbldnsd.log"
        self._process: subprocess.Popen[bytes] | None = None
        for zone, datasets in lists.items():
            for kind, lines in datasets:
                file = f"{zone}.{kind}"
                (directory / file).write_text(lines if kind == "acl" else SOA + lines, encoding="ascii")
                self._zones.append(f"{zone}:{kind}:{file}")

    @property
    def nameserver(self) -> str:
        """As the configuration of policyd names it."""
        return f"127.0.0.1:{self.port}"

    def change(self, zone: str, kind: str, lines: str, name: str, reply: str) -> None:
        """Replace a dataset, and wait until ``name`` is answered with ``reply`` (empty: not listed)."""
        new = self.directory / f"{zone}.{kind}"
        old = new.stat()
        new.write_text(SOA + lines, encoding="ascii")
        # It looks at the time of change, in whole seconds.
        os.utime(new, (old.st_atime + 2, int(old.st_mtime) + 2))
        assert self._process
        self._process.send_signal(signal.SIGHUP)
        wait_for(lambda: self.says(f"{name}.{zone}") == reply, self._log.read_text)

    def says(self, name: str) -> str:
        """Its reply for a whole name, asked directly; empty: not listed."""
        query = dns.message.make_query(name, "A")
        answer = dns.query.udp(query, "127.0.0.1", timeout=30, port=self.port).answer
        return str(answer[0][0]) if answer else ""

    def __enter__(self) -> Self:
        user = ["-u", "rbldns"] if os.getuid() == 0 else []
        command = ["/usr/sbin/rbldnsd", "-n", *user, "-b", f"127.0.0.1/{self.port}", "-t", "1", "-c", "1h"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-w", str(self.directory), *self._zones],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self._answers, self._log.read_text)
        return self

    def _answers(self) -> bool:
        assert self._process
        assert self._process.poll() is None, self._log.read_text()
        try:
            dns.query.udp(dns.message.make_query("localhost", "A"), "127.0.0.1", timeout=0.2, port=self.port)
        except (dns.exception.DNSException, OSError):
            return False
        return True

    def __exit__(self, *exception: object) -> None:
        assert self._process
        self._process.terminate()
        self._process.wait(30)
