"""How many different messages of a login a quota refused: same sender, size and recipients are one message, tried again."""

from __future__ import annotations

from collections.abc import Iterable

from policyd.accounts import digest
from policyd.detectors import BREACHED, Seen, Surroundings


class Detector:
    """See :class:`policyd.detectors.Detector`."""

    counts = BREACHED
    volume = True
    remembers = False

    def __init__(self, around: Surroundings) -> None:
        pass

    def values(self, seen: Seen) -> Iterable[str]:
        """A digest of what makes it the same message."""
        request = seen.request
        # At RCPT each recipient of one message is refused by itself.
        recipients = sorted(seen.recipients) if request.recipient_count else []
        return (f"{digest(repr((request.sender_key, request.size, recipients))):x}",)
