"""As how many sender addresses a login sends; the null sender does not count. Counted at every stage, whatever is answered."""

from __future__ import annotations

from collections.abc import Iterable

from policyd.detectors import ASKED, Seen, Surroundings


class Detector:
    """See :class:`policyd.detectors.Detector`."""

    counts = ASKED
    volume = False
    remembers = False

    def __init__(self, around: Surroundings) -> None:
        pass

    def values(self, seen: Seen) -> Iterable[str]:
        """The folded sender."""
        sender = seen.request.sender_key
        return (sender[:256],) if sender else ()
