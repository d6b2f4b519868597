"""How many different mails of a login other checks refused: forged senders, listed clients; the same one tried again is one.

Refusals by quotas, bans and suspensions do not count.
"""

from __future__ import annotations

from collections.abc import Iterable

from policyd.accounts import digest
from policyd.detectors import REFUSED, Seen, Surroundings


class Detector:
    """See :class:`policyd.detectors.Detector`."""

    counts = REFUSED
    volume = False
    remembers = False

    def __init__(self, around: Surroundings) -> None:
        pass

    def values(self, seen: Seen) -> Iterable[str]:
        """The check that refused, with a digest of the mail."""
        request = seen.request
        mail = (request.sender_key, request.recipient_key or request.size)
        return (f"{seen.by}:{digest(repr(mail)):x}",)
