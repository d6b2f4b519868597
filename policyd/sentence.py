"""``when`` of a detector, a sentence such as ``more than 8 client networks per user in 10m``, to and from text."""

from __future__ import annotations

import re
from typing import NamedTuple

from policyd.units import format_duration, parse_window

#: What the number counts: distinct values, a share of deliveries, a multiple of what is usual.
DISTINCT, SHARE, USUAL = "distinct", "share", "usual"
#: The largest number of distinct values that can be asked for: so many are remembered for each account.
MOST_DISTINCT = 2_000

EXAMPLES = (
    "'more than 8 client networks per user in 10m'",
    "'more than 30% failed of at least 20 deliveries per user in 1h'",
    "'more than 5 times the usual recipients per user in 1h, at least 50'",
)

_DISTINCT = re.compile(r"more than (\d{1,6}) ([a-z]+(?: [a-z]+)?) per user in (\S+)", re.ASCII)
_SHARE = re.compile(
    r"more than (\d{1,3})% failed of at least (\d{1,6}) deliveries per user in (\S+)", re.ASCII
)
_USUAL = re.compile(
    r"more than (\d{1,3}) times the usual (recipients|messages) per user in ([^\s,]+), at least (\d{1,6})",
    re.ASCII,
)


class Sentence(NamedTuple):
    """What a detector looks for."""

    kind: str
    #: ``client networks``, ``new recipients``, ...; the unit of what is usual; ``failed deliveries``.
    noun: str
    #: Found when there is more than this: values, per cent, or a multiple.
    amount: int
    #: ms.
    window: int
    #: Below so many nothing is found, where a share or a multiple is compared.
    least: int = 0

    def __str__(self) -> str:
        window = format_duration(self.window)
        if self.kind == SHARE:
            return f"more than {self.amount}% failed of at least {self.least} deliveries per user in {window}"
        if self.kind == USUAL:
            return f"more than {self.amount} times the usual {self.noun} per user in {window}, at least {self.least}"
        return f"more than {self.amount} {self.noun} per user in {window}"


def parse_sentence(text: str) -> Sentence:
    """The sentence that ``text`` writes; :class:`ValueError` says what is wrong and what is right."""
    words = " ".join(text.lower().split())
    if match := _DISTINCT.fullmatch(words):
        amount = int(match[1])
        if amount > MOST_DISTINCT:
            raise ValueError(
                f"{text!r} asks for more than {MOST_DISTINCT} values, which is the most that are remembered"
            )
        return Sentence(DISTINCT, _plural(match[2]), amount, parse_window(match[3]))
    if match := _SHARE.fullmatch(words):
        share, least = int(match[1]), int(match[2])
        if share >= 100 or not least:
            raise ValueError(
                f"{text!r} can never hold or always does; write a share below 100% of at least 1 delivery"
            )
        return Sentence(SHARE, "failed deliveries", share, parse_window(match[3]), least)
    if match := _USUAL.fullmatch(words):
        factor, least = int(match[1]), int(match[4])
        if not factor or not least:
            raise ValueError(f"{text!r} needs a factor and a least amount above 0")
        return Sentence(USUAL, match[2], factor, parse_window(match[3]), least)
    raise ValueError(f"{text!r} is no sentence that policyd reads; write it like {', or '.join(EXAMPLES)}")


def _plural(noun: str) -> str:
    """``country`` as ``countries``, ``sender address`` as ``sender addresses``."""
    if noun.endswith("y"):
        return noun[:-1] + "ies"
    if noun.endswith(("ss", "ch")):
        return noun + "es"
    return noun if noun.endswith("s") else noun + "s"
