"""From how many countries a login is used, by the MaxMind database that ``[site] country_database`` names.

Without the database, or the Python module ``maxminddb``, nothing is counted, and ``policyctl config check`` says so. The site's
own networks and ``except_networks`` never count. Counted at every stage, whatever is answered.
"""

from __future__ import annotations

from collections.abc import Iterable

from policyd.detectors import ASKED, Seen, Surroundings


class Detector:
    """See :class:`policyd.detectors.Detector`."""

    counts = ASKED
    volume = False
    remembers = False

    def __init__(self, around: Surroundings) -> None:
        self._around = around

    def values(self, seen: Seen) -> Iterable[str]:
        """The client's country."""
        address, around = seen.request.client_address, self._around
        if address in around.site.networks or address in around.excepted:
            return ()
        country = around.country_of(address)
        return (country,) if country else ()
