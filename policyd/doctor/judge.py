"""All rules over the facts, the worst first; and what a monitoring system is told of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from policyd.doctor import asking, machine, neighbours, sockets, traffic, wiring
from policyd.doctor.facts import CRITICAL, EXIT_CODES, UNKNOWN, WARNING, Facts, Finding

Rule = Callable[[Facts], Iterator[Finding]]
RULES: tuple[Rule, ...] = (
    *sockets.RULES,
    *wiring.RULES,
    *asking.RULES,
    *traffic.RULES,
    *neighbours.RULES,
    *machine.RULES,
)
_ORDER = (CRITICAL, WARNING, UNKNOWN)


def judge(facts: Facts, ignored: Collection[str] = ()) -> list[Finding]:
    """Everything that is wrong, the worst first, without the findings whose names are ``ignored``."""
    found = dict.fromkeys(finding for rule in RULES for finding in rule(facts) if finding.name not in ignored)
    return sorted(found, key=lambda finding: _ORDER.index(finding.level))


def exit_code(findings: Sequence[Finding]) -> int:
    """0 sound, 1 warning, 2 critical, 3 unknown; the first of them counts."""
    return EXIT_CODES[findings[0].level] if findings else 0


def summary(findings: Sequence[Finding]) -> str:
    """One line, as monitoring plug-ins print it first."""
    if not findings:
        return "POLICYD OK: sound"
    counts = [(level, sum(finding.level == level for finding in findings)) for level in _ORDER]
    said = ", ".join(f"{count} {level}" for level, count in counts if count)
    names = ", ".join(dict.fromkeys(finding.name for finding in findings))
    return f"POLICYD {findings[0].level.upper()}: {said}: {names}"
