"""``when`` of a check: a condition on what an earlier check of the chain found, such as ``dnsbl >= 1`` or ``spf = softfail``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from policyd.inquiry import Finding

_FORM = re.compile(r"\s*([A-Za-z0-9_-]+)\s*(>=|<=|!=|=|>|<)\s*([A-Za-z0-9_-]+)\s*", re.ASCII)
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    ">=": lambda found, wanted: found >= wanted,
    "<=": lambda found, wanted: found <= wanted,
    ">": lambda found, wanted: found > wanted,
    "<": lambda found, wanted: found < wanted,
}


class Condition(NamedTuple):
    """A check's finding compared with a score (a whole number) or a result (a word)."""

    check: str
    operator: str
    wanted: Finding

    def holds(self, findings: Mapping[str, Finding]) -> bool:
        """Whether it holds; a check that found nothing, or was not asked, fulfils no condition."""
        found = findings.get(self.check)
        if found is None:
            return False
        if self.operator == "=":
            return found == self.wanted
        if self.operator == "!=":
            return found != self.wanted
        return type(found) is type(self.wanted) and _ORDERED[self.operator](found, self.wanted)

    def __str__(self) -> str:
        return f"{self.check} {self.operator} {self.wanted}"


def parse_condition(text: str) -> Condition:
    """The condition that ``text`` writes.

    :raises ValueError: it is none; the message shows one.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no condition; write one like 'dnsbl >= 1' or 'spf = softfail'")
    check, operator, wanted = match.groups()
    number = re.fullmatch(r"-?[0-9]{1,9}", wanted, re.ASCII)
    if number is None and operator not in ("=", "!="):
        raise ValueError(f"{text!r} compares a word; only numbers are more or less: write '= {wanted}'")
    return Condition(check, operator, int(wanted) if number else wanted)
