"""Facts about the nameservers: each is asked, once more if it is silent, for a name that cannot exist."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from policyd.dns.message import answers, make_question, read_reply
from policyd.dns.nameservers import parse_nameserver
from policyd.doctor.facts import Nameserver
from policyd.lookup import FOUND, NODATA, NXDOMAIN
from policyd.match import NetworkSet

TRIES = 2
#: Where systemd-resolved asks, which itself listens at 127.0.0.53.
_UPSTREAM = "/run/systemd/resolve/resolv.conf"
_STUBS = ("127.0.0.53", "127.0.0.54")


def look(names: Sequence[str], timeout: float, own: NetworkSet) -> tuple[Nameserver, ...]:
    """How each does. ``timeout``: of one try, s; ``own``: the site's networks."""
    if not names:
        return ()
    with ThreadPoolExecutor(len(names)) as threads:
        return tuple(threads.map(lambda name: _look(name, timeout, own), names))


def _look(name: str, timeout: float, own: NetworkSet) -> Nameserver:
    host, port = parse_nameserver(name)
    upstream: Collection[str] = [host]
    if host in _STUBS:
        from policyd.dns.nameservers import system_nameservers

        upstream = [parse_nameserver(each)[0] for each in system_nameservers(_UPSTREAM)]
    state, address = _ask(host, port, timeout)
    return Nameserver(name, state, address, any(_foreign(each, own) for each in upstream))


def _foreign(host: str, own: NetworkSet) -> bool:
    address = ipaddress.ip_address(host)
    if not address.is_global or host in own:
        return False
    # To its own addresses this machine speaks from that very address; connecting sends nothing.
    with socket.socket(
        socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM
    ) as mine:
        try:
            mine.connect((host, 53))
        except OSError:
            return True
        return bool(mine.getsockname()[0] != str(address))


def _ask(host: str, port: int, timeout: float) -> tuple[str, str]:
    """What it does, and the address that it gives to a name under .invalid (RFC 6761)."""
    question = make_question(f"policyd-{secrets.token_hex(8)}.invalid", "A")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(TRIES):
        identity = secrets.randbelow(65536)
        with socket.socket(family, socket.SOCK_DGRAM) as asked, contextlib.suppress(OSError):
            asked.connect((host, port))
            asked.send(question.wire(identity))
            until = time.monotonic() + timeout
            while (left := until - time.monotonic()) > 0:
                asked.settimeout(left)
                data = asked.recv(65535)
                if not answers(question, identity, data):
                    continue
                reply = read_reply(question, data)
                if reply.status == FOUND:
                    return "answers", str(reply.records[0]) if reply.records else "an answer"
                # A resolver of one's own that reaches nobody says SERVFAIL, which blinds policyd as well.
                return "answers" if reply.status in (NODATA, NXDOMAIN) else "refuses", ""
    return "silent", ""
