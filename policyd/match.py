"""Matching of addresses, domains and client networks, most specific first.

Everything is compared in one canonical form: lower case, NFC, IPv4-mapped IPv6 addresses as IPv4.
"""

from __future__ import annotations

import ipaddress
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def fold(text: str) -> str:
    """The form in which logins, addresses and domains are compared: NFC, lower case."""
    return (
        text.lower()
        if text.isascii()
        else unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    )


def domain_key(domain: str) -> str:
    """The form in which a domain (folded) is compared: A-labels (RFC 5890), without a trailing dot.

    A client picks between U-labels and A-labels by using SMTPUTF8 or not; both are the same domain. What is no
    domain name stays as it is.
    """
    domain = domain.rstrip(".")
    if domain.isascii():
        return domain
    import idna

    dot = domain[:1] if domain[:1] == "." else ""
    try:
        return dot + idna.encode(domain.removeprefix("."), uts46=True).decode("ascii").rstrip(".")
    except (idna.IDNAError, UnicodeError):
        return domain


def address_key(text: str) -> str:
    """The form in which a mail address or login is compared: folded, its domain by :func:`domain_key`.

    Postfix delivers ``alice@example.org.`` to ``alice@example.org`` and asks about what the client wrote; without
    this a dot would step past bans and open a second counter.
    """
    text = fold(text)
    if "@" not in text or (text.isascii() and text[-1:] != "."):
        return text
    local, _, domain = text.rpartition("@")
    return f"{local}@{domain_key(domain)}"


def domain_of(address: str) -> str:
    """The part after the last ``@`` (RFC 5321 4.1.2), without a trailing dot; empty when there is none."""
    return address.rpartition("@")[2].rstrip(".") if "@" in address else ""


@lru_cache(maxsize=8192)
def parse_address(text: str) -> Address | None:
    """The client address that Postfix sent; ``None`` for ``unknown`` and for anything else that is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            address = ipaddress.IPv6Address(int(address))
        return address.ipv4_mapped or address
    return address


@lru_cache(maxsize=8192)
def client_key(text: str) -> str:
    """The value under which a client is counted: the address itself, or its /64 for IPv6 (RFC 4291 2.5.4)."""
    address = parse_address(text)
    if address is None:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)


def parse_network(text: str) -> Network:
    """A network such as ``192.0.2.0/24``, ``2001:db8::/32`` or a single address; :class:`ValueError` otherwise."""
    bare = text.strip().removeprefix("[")
    if bare != text.strip():
        bare = bare.replace("]", "", 1)
    if "%" in bare:
        raise ValueError(f"{text!r} has a zone; leave out the % and what follows it")
    try:
        network = ipaddress.ip_network(bare)
    except ValueError as error:
        try:
            wide = ipaddress.ip_network(bare, strict=False)
        except ValueError:
            raise ValueError(f"{text!r} is no IP address or network") from None
        raise ValueError(f"{text!r} has host bits set; write {wide}") from error
    if (
        isinstance(network, ipaddress.IPv6Network)
        and network.network_address.ipv4_mapped
        and network.prefixlen >= 96
    ):
        mapped = network.network_address.ipv4_mapped
        return ipaddress.IPv4Network((int(mapped), network.prefixlen - 96))
    return network


class NetworkSet:
    """Networks with a value each; asked for the most specific one that holds an address."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._by_length: dict[tuple[int, int], dict[int, Network]] = {}
        for network in networks:
            self.add(network)

    def add(self, network: Network) -> None:
        """Take ``network`` in."""
        self._by_length.setdefault((network.version, network.prefixlen), {})[int(network.network_address)] = (
            network
        )
        self._by_length = dict(sorted(self._by_length.items(), key=lambda item: item[0], reverse=True))

    def discard(self, network: Network) -> None:
        """Take ``network`` out, if it is in."""
        members = self._by_length.get((network.version, network.prefixlen), {})
        members.pop(int(network.network_address), None)

    def find(self, text: str) -> Network | None:
        """The most specific network that holds the address ``text``; ``None`` when there is none."""
        return next(self.holding(text), None)

    def holding(self, text: str) -> Iterator[Network]:
        """All networks that hold the address ``text``, most specific first."""
        address = parse_address(text) if self._by_length else None
        if address is None:
            return
        number, version, bits = int(address), address.version, address.max_prefixlen
        for (network_version, length), members in self._by_length.items():
            if network_version == version:
                network = members.get(number >> (bits - length) << (bits - length))
                if network is not None:
                    yield network

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self.find(text) is not None

    def __iter__(self) -> Iterator[Network]:
        return (network for members in self._by_length.values() for network in members.values())

    def __len__(self) -> int:
        return sum(len(members) for members in self._by_length.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetworkSet) and set(self) == set(other)

    __hash__ = None  # type: ignore[assignment]
