"""What ``policyctl learn`` says: what it read, which limits would have fitted, what the present policy would have done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from policyd.answer import escape
from policyd.cli.common import Session, Terms, Times
from policyd.cli.findings import lines_of, records_of
from policyd.cli.replay import replayed
from policyd.findings import Findings
from policyd.store.gathered import Totals
from policyd.store.learned import Written
from policyd.units import format_duration

if TYPE_CHECKING:
    from policyd.cli.measure import Measure
    from policyd.maillog.trail import Trail

#: What detectors count that have to learn first.
NEW_RECIPIENTS = "new recipients"


class Told:
    """What it came to, for people and for programs."""

    def __init__(
        self,
        session: Session,
        terms: Terms,
        times: Times,
        read: Trail,
        totals: Totals,
        written: Written,
        looked_on: int,
    ) -> None:
        self._session, self._terms, self._times = session, terms, times
        self._read, self._totals, self._written = read, totals, written
        self._looked_on = looked_on

    def record(self, measure: Measure, findings: Findings) -> dict[str, Any]:
        """As JSON."""
        totals, read, written, times = self._totals, self._read, self._written, self._times
        return {
            "dry_run": self._terms.dry_run,
            "lines": read.lines,
            "not_understood": read.odd,
            "unfinished": read.unfinished,
            "messages": totals.messages,
            "recipients": totals.recipients,
            "accounts": totals.accounts,
            "first": times.iso(totals.first_at),
            "last": times.iso(totals.last_at),
            "limits": measure.records(),
            "would": records_of(findings.groups(), times),
            "not_judged": self._not_judged(),
            "looked_on_until": times.iso(self._looked_on),
            "written": vars(written),
        }

    def lines(self, measure: Measure, findings: Findings) -> Iterator[str]:
        """As text."""
        totals, read, written, times = self._totals, self._read, self._written, self._times
        span = format_duration((totals.last_at - totals.first_at) // 60_000 * 60_000)
        yield f"read      {read.lines} lines, {times.text(totals.first_at)} to {times.text(totals.last_at)} ({span})"
        yield f"found     {totals.messages} messages to {totals.recipients} recipients, of {totals.accounts} accounts"
        if read.odd or read.unfinished:
            yield f"left out  {read.unfinished} mails that were begun and not queued, {read.odd} lines that make no sense"
        yield from ["", "The busiest windows of the accounts, and limits that would have fitted them:", ""]
        yield from measure.lines()
        groups = findings.groups()
        yield ""
        yield (
            "With the present policy in force all that time:"
            if groups
            else "The present policy would have done nothing."
        )
        if groups:
            yield from ["", *lines_of(groups, times)]
        config = self._session.sound_config
        if left_out := self._not_judged():
            yield f"\nnot judged, for a log does not tell: {', '.join(map(escape, left_out))}"
        if any(detect.section.when.noun == NEW_RECIPIENTS for detect in config.detects):
            yield f"\nuntil {times.text(self._looked_on)} all recipients were new, and only remembered"
        yield ""
        prefix, tier = self._terms.prefix, config.tiers.learned
        if tier:
            kept = f"; {written.kept} stay in the tier they were put into" if written.kept else ""
            out = f"; {written.suspended} were suspended once, and stay out" if written.suspended else ""
            yield f"{prefix}{written.tiers} accounts put into the tier {escape(tier)}{kept}{out}"
        else:
            yield "[tiers] learned names no tier, so the accounts stay in the default one"
        yield f"{prefix}{written.recipients} recipients remembered, {written.others} more accounts brought up to date"

    def _not_judged(self) -> list[str]:
        config = self._session.sound_config
        judged = {section.name for section in replayed(config)}
        return [section.name for section in config.checks if section.name not in judged]
