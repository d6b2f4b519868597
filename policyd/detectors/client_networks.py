"""From how many networks a login is used: an IPv4 /24, an IPv6 /48.

A stolen password is used by many machines at once; its owner has a few, and a telephone that changes networks. The site's own
networks and ``except_networks`` (a webmail, a provider's pool) never count. Counted at every stage, whatever is answered.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from policyd.detectors import ASKED, Seen, Surroundings
from policyd.match import parse_address


class Detector:
    """See :class:`policyd.detectors.Detector`."""

    counts = ASKED
    volume = False
    remembers = False

    def __init__(self, around: Surroundings) -> None:
        self._own, self._excepted = around.site.networks, around.excepted

    def values(self, seen: Seen) -> Iterable[str]:
        """The client's network."""
        address = seen.request.client_address
        if address in self._own or address in self._excepted:
            return ()
        network = network_of(address)
        return (network,) if network else ()


@lru_cache(maxsize=8192)
def network_of(text: str) -> str:
    """The /24 or /48 around an address; empty when it is none."""
    address = parse_address(text)
    if address is None:
        return ""
    bits, length = (8, 24) if address.version == 4 else (80, 48)
    return f"{type(address)(int(address) >> bits << bits)}/{length}"
