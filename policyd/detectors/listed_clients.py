"""From how many blocklisted client networks a login is used: needs a ``dnsbl`` check for submission, in shadow for example.

The site's own networks and ``except_networks`` never count. Counted at every stage, whatever is answered.
"""

from __future__ import annotations

from collections.abc import Iterable

from policyd.answer import REFUSE
from policyd.detectors import ASKED, Seen, Surroundings
from policyd.detectors.client_networks import network_of


class Detector:
    """See :class:`policyd.detectors.Detector`."""

    counts = ASKED
    volume = False
    remembers = False

    def __init__(self, around: Surroundings) -> None:
        self._around = around

    def values(self, seen: Seen) -> Iterable[str]:
        """The client's network, when a list has the client."""
        address, around = seen.request.client_address, self._around
        if address in around.site.networks or address in around.excepted:
            return ()
        for check, _, opinion, _, _ in seen.heard:
            if check in around.blocklist_checks and opinion is not None and opinion.answer.strength == REFUSE:
                network = network_of(address)
                return (network,) if network else ()
        return ()
