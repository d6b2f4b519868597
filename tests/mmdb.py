"""A country database of MaxMind's format (version 2.0 of its specification) as small as a test needs it: IPv4 networks."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any


def _encoded(value: Any, kind: int = 5) -> bytes:
    """A value of the data section; ``kind`` of whole numbers: 5, 6 (16, 32 bits) or 9 (64 bits)."""
    if isinstance(value, str):
        text = value.encode()
        return bytes([2 << 5 | len(text)]) + text
    if isinstance(value, Mapping):
        pairs = [
            _encoded(name) + (each if isinstance(each, bytes) else _encoded(each))
            for name, each in value.items()
        ]
        return bytes([7 << 5 | len(value)]) + b"".join(pairs)
    if isinstance(value, list):
        return bytes([len(value), 11 - 7]) + b"".join(_encoded(each) for each in value)
    octets = int(value).to_bytes(8, "big").lstrip(b"\0")
    return (bytes([len(octets), kind - 7]) if kind > 7 else bytes([kind << 5 | len(octets)])) + octets


def country_database(countries: Mapping[str, str]) -> bytes:
    """The file that says of each network in which country it is."""
    nodes: list[list[int | str]] = [["", ""]]
    for text, country in countries.items():
        network = ipaddress.IPv4Network(text)
        bits = f"{int(network.network_address):032b}"[: network.prefixlen]
        at = 0
        for bit in bits[:-1]:
            below = nodes[at][int(bit)]
            if not isinstance(below, int):
                below = len(nodes)
                nodes.append(["", ""])
                nodes[at][int(bit)] = below
            at = below
        nodes[at][int(bits[-1])] = country
    data, offsets = b"", {}
    for country in dict.fromkeys(countries.values()):
        offsets[country] = len(data)
        data += _encoded({"country": {"iso_code": country}})
    tree = b""
    for node in nodes:
        for record in node:
            number = record if isinstance(record, int) else len(nodes)
            if record in offsets:
                number = len(nodes) + 16 + offsets[record]
            tree += number.to_bytes(3, "big")
    metadata = {
        "binary_format_major_version": _encoded(2),
        "binary_format_minor_version": _encoded(0),
        "build_epoch": _encoded(1_790_000_000, 9),
        "database_type": "Test-Country",
        "description": {"en": "a test"},
        "ip_version": _encoded(4),
        "languages": ["en"],
        "node_count": _encoded(len(nodes), 6),
        "record_size": _encoded(24),
    }
    return tree + bytes(16) + data + b"\xab\xcd\xefMaxMind.com" + _encoded(metadata)
