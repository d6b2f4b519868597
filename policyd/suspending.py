"""How long a login is suspended, and who never is: the ladder of ``[suspend]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policyd.answer import Answer, clip, make_answer
from policyd.match import domain_of
from policyd.units import DAY, HOUR

#: A step of the ladder that ends only by ``policyctl release``.
PERMANENT = 0
#: After a suspension the account is in the default tier for so long, ms.
PROBATION = 48 * HOUR


@dataclass(frozen=True)
class Suspending:
    """``[suspend]``."""

    #: ms each; :data:`PERMANENT` stands last.
    ladder: tuple[int, ...] = (HOUR, 24 * HOUR, PERMANENT)
    #: After so long a strike is forgotten, ms.
    forget_after: int = 30 * DAY
    #: Logins, and domains of logins, that are alerted about and never suspended.
    never: frozenset[str] = frozenset()
    text: str = "Sending suspended; unusual use of this account. Change your password and contact postmaster. ref {ref}"

    def spares(self, login: str) -> bool:
        """Whether ``login`` is never suspended."""
        return bool(self.never) and (login in self.never or domain_of(login) in self.never)

    def remembered(self, strikes: Sequence[int], now: int) -> list[int]:
        """The strikes that are not forgotten at ledger time ``now``."""
        return [at for at in strikes if now - at < self.forget_after]

    @property
    def answer(self) -> Answer:
        """What a suspended login is told; its reference is still to be filled in."""
        return make_answer("550", clip("5.7.1 " + self.text))

    def step(self, strikes: Sequence[int], now: int) -> tuple[int, int]:
        """The step that follows these strikes, from 1, and how long it lasts in ms."""
        step = min(len(self.remembered(strikes, now)) + 1, len(self.ladder))
        return step, self.ladder[step - 1]
