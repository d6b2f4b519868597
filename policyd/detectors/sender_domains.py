"""As how many sender domains a login sends; the site's own domains count as one. Counted at every stage, whatever is answered."""

from __future__ import annotations

from collections.abc import Iterable

from policyd.detectors import ASKED, Seen, Surroundings


class Detector:
    """See :class:`policyd.detectors.Detector`."""

    counts = ASKED
    volume = False
    remembers = False

    def __init__(self, around: Surroundings) -> None:
        self._own = around.site.domains

    def values(self, seen: Seen) -> Iterable[str]:
        """The sender's domain."""
        domain = seen.request.sender_domain
        if not domain:
            return ()
        return ("own domains",) if domain in self._own else (domain[:256],)
