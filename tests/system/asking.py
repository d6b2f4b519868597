"""The policy protocol from Postfix's side: requests as Postfix writes them, connections that ask, and many at once."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

from tests.system.waiting import PATIENCE

RCPT, END = "RCPT", "END-OF-MESSAGE"
ALICE = "alice@example.org"

_numbers = itertools.count()
#: What an answer looks like (policyd/answer.py): a known word or code with text, one printable line.
GRAMMAR = re.compile(
    r"(?:DUNNO|(?:PREPEND|HOLD|DEFER|DEFER_IF_PERMIT|REJECT|[45][0-9][0-9]) [^\x00-\x1f\x7f-\x9f]{1,400})"
)


def new_instance() -> str:
    """An instance that no request had before, as Postfix makes them."""
    return f"{os.getpid():x}.{next(_numbers):x}.0"


def attributes(stage: str = END, user: str = ALICE, **given: object) -> dict[str, str]:
    """The attributes of a request about a message to one recipient elsewhere."""
    base: dict[str, object] = {
        "request": "smtpd_access_policy",
        "protocol_state": stage,
        "protocol_name": "ESMTP",
        "client_address": "192.0.2.7",
        "client_name": "host.example.net",
        "reverse_client_name": "host.example.net",
        "helo_name": "host.example.net",
        "sender": user or "bob@example.net",
        "recipient": "carol@example.com",
        "recipient_count": 0 if stage == RCPT else 1,
        "queue_id": "" if stage == RCPT else "4F9D195432C",
        "instance": given.get("instance") or new_instance(),
        "size": 1000,
        "sasl_method": "plain" if user else "",
        "sasl_username": user,
        "sasl_sender": "",
    }
    return {name: str(value) for name, value in {**base, **given}.items()}


def encoded(pairs: dict[str, str]) -> bytes:
    """The request as it stands on the wire."""
    return "".join(f"{name}={value}\n" for name, value in pairs.items()).encode() + b"\n"


def request(stage: str = END, user: str = ALICE, **given: object) -> bytes:
    """A whole request; see :func:`attributes`."""
    return encoded(attributes(stage, user, **given))


def connect(address: str, timeout: float = PATIENCE, receive_buffer: int = 0) -> socket.socket:
    """A connection to a listener, in Postfix's spelling; ``receive_buffer`` (octets) is the kernel's choice if 0."""
    kind, _, rest = address.partition(":")
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX)
        target: Any = rest
    else:
        host, _, port = rest.rpartition(":")
        sock = socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET)
        target = (host.strip("[]"), int(port))
    sock.settimeout(timeout)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        sock.connect(target)
        if sock.family != socket.AF_UNIX:
            # Otherwise the second half of a request waits for the receipt of the first.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


class Asker:
    """One connection; a context manager."""

    def __init__(self, address: str, timeout: float = PATIENCE, receive_buffer: int = 0) -> None:
        self.sock = connect(address, timeout, receive_buffer)
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Put bytes on the wire."""
        self.sock.sendall(data)

    def answer(self) -> str:
        """The next answer's action; :class:`EOFError` when policyd has closed instead."""
        while b"\n\n" not in self._received:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError(self._received)
            self._received += data
        block, _, self._received = self._received.partition(b"\n\n")
        name, _, action = block.decode().partition("=")
        assert name == "action", block
        assert GRAMMAR.fullmatch(action), action
        return action

    def ask(self, stage: str = END, user: str = ALICE, **given: object) -> str:
        """The answer to one request."""
        self.send(request(stage, user, **given))
        return self.answer()

    def at_end(self) -> bool:
        """Wait for what comes next; whether it is policyd's closing."""
        with contextlib.suppress(EOFError):
            raise AssertionError(f"answered {self.answer()}")
        return not self._received


def in_parallel(tasks: Sequence[Callable[[], None]]) -> None:
    """Run each task in a thread of its own; the first failure of any is raised."""
    failures: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as failure:  # noqa: BLE001  # handed on to the test below
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def ask_all(address: str, requests: Sequence[bytes], connections: int) -> list[str]:
    """The answers to all requests, asked in turn on each of so many connections."""
    answers = [""] * len(requests)

    def talk(first: int) -> None:
        with Asker(address) as asker:
            for number in range(first, len(requests), connections):
                asker.send(requests[number])
                answers[number] = asker.answer()

    in_parallel([lambda first=first: talk(first) for first in range(connections)])  # type: ignore[misc]
    return answers


def policy(*listen: str, limits: Sequence[str] = (), server: str = "", checks: str = "") -> str:
    """A configuration that listens on the addresses, bans, and holds accounts to ``limits``, with ``checks`` after that.

    An address may be a table of TOML, written in braces.
    """
    addresses = ", ".join(each if each.startswith("{") else f'"{each}"' for each in listen)
    quota = f"[[check]]\nuse = 'quota'\nfor = 'submission'\nlimits = {list(limits)!r}\n" if limits else ""
    return (
        "[site]\ndomains = ['example.org']\ndefault_domain = 'example.org'\n"
        f"[server]\nlisten = [{addresses}]\n{server}\n[keep]\nmin_free = '1KB'\n"
        f"[[check]]\nuse = 'allow'\n[[check]]\nuse = 'bans'\n{quota}{checks}"
    )
