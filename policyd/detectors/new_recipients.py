"""To how many recipients a login sends that it has never written to before: the best single mark of a stolen password.

Recipients are remembered for 400 days from the last mail that passed; mail among the site's own domains does not count. Counted
when the mail passed, at END-OF-MESSAGE, from the recipients that Postfix named at RCPT. Until recipients were remembered for 30
days, or learned by ``policyctl learn``, it only alerts.
"""

from __future__ import annotations

from collections.abc import Iterable

from policyd.accounts import digest
from policyd.detectors import PASSED, Seen, Surroundings
from policyd.match import domain_of


class Detector:
    """See :class:`policyd.detectors.Detector`."""

    counts = PASSED
    volume = True
    remembers = True

    def __init__(self, around: Surroundings) -> None:
        self._own = around.site.domains

    def values(self, seen: Seen) -> Iterable[str]:
        """A digest of each stranger."""
        own = self._own
        return [f"{digest(each):x}" for each in seen.strangers if domain_of(each) not in own]
