"""To how many different recipients a login sends. Counted when the mail passed, at END-OF-MESSAGE.

With several recipients Postfix names them at RCPT only: without that hook each mail's recipients count as ones never seen.
"""

from __future__ import annotations

from collections.abc import Iterable

from policyd.accounts import digest
from policyd.detectors import PASSED, Seen, Surroundings
from policyd.sentence import MOST_DISTINCT


class Detector:
    """See :class:`policyd.detectors.Detector`."""

    counts = PASSED
    volume = True
    remembers = False

    def __init__(self, around: Surroundings) -> None:
        pass

    def values(self, seen: Seen) -> Iterable[str]:
        """A digest of each recipient."""
        request = seen.request
        # As many as can be told apart: what a client claims has no bound.
        unknown = min(request.recipients - len(seen.recipients), MOST_DISTINCT + 1)
        return [
            *[f"{digest(recipient):x}" for recipient in seen.recipients],
            *[f"{request.instance}#{number}" for number in range(unknown)],
        ]
