"""Notices when Postfix never asks at a stage that a check needs: a wrong wiring must not stay silent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from policyd.engine import Rule
from policyd.opinion import OFF
from policyd.request import ASKED_BY_HAND, STAGES
from policyd.watch import Watch

#: Requests of a direction that were not refused, after which a stage that never came is missed.
ENOUGH = 100

#: Where Postfix asks at a stage (postconf(5)).
_WHERE = {
    "RCPT": "smtpd_recipient_restrictions",
    "DATA": "smtpd_data_restrictions",
    "END-OF-MESSAGE": "smtpd_end_of_data_restrictions",
}


class StageWatch:
    """Counts requests by direction and stage, for one set of rules."""

    def __init__(self, rules: Iterable[Rule], watch: Watch | None = None) -> None:
        self._needs = [
            (f"check {rule.name}", rule.name, getattr(rule.check, "needs", {}))
            for rule in rules
            if rule.mode != OFF
        ]
        if watch is not None:
            self._needs.append(("[[detect]]", "[[detect]]", watch.needs))
        self._told: set[tuple[str, str]] = set()
        #: Requests by (direction, stage), of the stages that Postfix knows.
        self.seen: dict[tuple[str, str], int] = {}
        #: Of those by direction, how many were refused: no later stage of that mail comes.
        self.refusals: dict[str, int] = {}

    def count(self, direction: str, stage: str, instance: str = "") -> None:
        """A request has come. One of ``policyctl ask`` says nothing of what Postfix asks."""
        if instance.startswith(ASKED_BY_HAND):
            return
        key = (direction, stage)
        known = self.seen.get(key)
        if known is not None:
            self.seen[key] = known + 1
        elif stage in STAGES:
            self.seen[key] = 1

    def refused(self, direction: str, instance: str = "") -> None:
        """One that was counted has been refused."""
        if not instance.startswith(ASKED_BY_HAND):
            self.refusals[direction] = self.refusals.get(direction, 0) + 1

    def _let_through(self, direction: str) -> int:
        arrived = sum(count for (known, _), count in self.seen.items() if known == direction)
        return arrived - self.refusals.get(direction, 0)

    def states(self) -> Iterator[tuple[str, bool | None, str]]:
        """For each check and stage that it needs: what it is, whether the stage is missed, ``None``: not known yet, and why."""
        for what, _, needs in self._needs:
            for direction, stages in needs.items():
                total = self._let_through(direction)
                for stage in sorted(stages):
                    there = (direction, stage) in self.seen
                    missed = False if there else True if total >= ENOUGH else None
                    why = (
                        f"of {total} {direction} requests that were not refused none was; {self._remedy(stage)}"
                        if missed
                        else ""
                    )
                    yield f"{what} at {stage} of {direction}", missed, why

    def missing(self) -> Iterator[str]:
        """One line for each rule and stage that is missed, each only once."""
        for what, name, needs in self._needs:
            for direction, stages in needs.items():
                total = self._let_through(direction)
                if total < ENOUGH:
                    continue
                for stage in sorted(stages):
                    key = (name, direction + stage)
                    if (direction, stage) not in self.seen and key not in self._told:
                        self._told.add(key)
                        yield (
                            f"stage-missing: {what} needs {stage}, and of {total} {direction} requests that were not "
                            f"refused none was; {self._remedy(stage)}"
                        )

    @staticmethod
    def _remedy(stage: str) -> str:
        return f"add check_policy_service to {_WHERE.get(stage, 'the restrictions')} of that service"
