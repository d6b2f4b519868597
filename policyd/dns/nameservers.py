"""Which nameservers are asked: how one is written, and those of the system."""

from __future__ import annotations

import ipaddress
import re

PORT = 53
RESOLV_CONF = "/etc/resolv.conf"
#: What resolver(3) asks when resolv.conf names nobody.
NOBODY_NAMED = "127.0.0.1:53"


def parse_nameserver(text: str) -> tuple[str, int]:
    """Address and port of ``IPv4``, ``IPv4:PORT``, ``[IPv6]`` or ``[IPv6]:PORT``.

    :raises ValueError: it is something else; the message says what to write.
    """
    # Without brackets ::1:53 would be an address of its own.
    match = re.fullmatch(r"(?:\[([^\]]*)\]|([^\[\]:]*))(?::([0-9]{1,5}))?", text)
    host = (match[1] if match[1] is not None else match[2]) if match else ""
    port = int(match[3]) if match and match[3] is not None else PORT
    try:
        address = ipaddress.ip_address(host)
        if match is None or (match[1] is not None) != (address.version == 6):
            raise ValueError
    except ValueError:
        remedy = "write the address of one, as 127.0.0.1:53 or [::1]:53"
        raise ValueError(f"{text!r} is no nameserver; {remedy}") from None
    if not 0 < port < 65536:
        raise ValueError(f"{text!r} has no port from 1 to 65535; write {write_nameserver(host, PORT)}")
    if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
        raise ValueError(f"{text!r} is nobody's address; write that of a nameserver, as 127.0.0.1:53")
    return str(address), port


def write_nameserver(host: str, port: int) -> str:
    """The one way in which it is written everywhere: with its port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def system_nameservers(path: str = RESOLV_CONF) -> tuple[str, ...]:
    """The nameservers of resolv.conf(5), the first three as the C library; what is none there is passed over.

    Its other lines mean nothing here: policyd never searches, it asks for whole names.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(65536).splitlines()
    except OSError:
        lines = []
    found: list[str] = []
    for line in lines:
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            # Without brackets: resolv.conf knows no ports.
            address = ipaddress.ip_address(words[1])
        except ValueError:
            continue
        text = write_nameserver(str(address), PORT)
        if text not in found:
            found.append(text)
    return tuple(found[:3]) or (NOBODY_NAMED,)
