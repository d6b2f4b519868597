"""The arithmetic of detectors: distinct values within a window, and what is far above the own past. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from policyd.accounts import Account, Flow
from policyd.sentence import Sentence
from policyd.units import DAY, format_duration

#: Makes a named tuple without the step of the interpreter that its own constructor is; for what each request makes.
_new = tuple.__new__
#: A multiple of what is usual is asked for only after so many days on which something was sent.
DAYS_KNOWN = 7
#: Parts of a window in which what is sent is added up.
PARTS = 12


def note(
    marks: Mapping[str, Sequence[int]], values: Iterable[str], sentence: Sentence, now: int, identifier: int
) -> tuple[dict[str, Sequence[int]], int]:
    """``marks``, oldest first, with ``values`` noted; and how many distinct ones the window held before.

    At most one more than the sentence's amount are kept, the ones seen last: enough to say exactly whether there are more.
    """
    oldest = now - sentence.window
    fresh = {value: entry for value, entry in marks.items() if entry[0] > oldest}
    before, entry = len(fresh), (now, identifier)
    for value in values:
        fresh.pop(value, None)
        fresh[value] = entry
    while len(fresh) > sentence.amount + 1:
        del fresh[next(iter(fresh))]
    return fresh, before


def above_usual(
    account: Account, name: str, sentence: Sentence, amount: int, now: int, identifier: int
) -> tuple[bool, str]:
    """Add ``amount`` up for the detector ``name``; whether it crosses the line, and what is found beyond it: empty when
    nothing is."""
    slot, today = now // max(1, sentence.window // PARTS), now // DAY
    flow = account.flows.get(name)
    if flow is None or flow.slot != slot or flow.day != today:
        flow = _next_part(account, name, sentence, now, slot)
    _, earlier, known, _, kept, _, peak = flow
    before = earlier + known
    after = before + amount
    # The past follows with the next part: it is long, and this is done for each mail.
    grown = _new(Flow, (slot, earlier, known + amount, identifier, kept, today, max(peak, after)))
    account.flows = {**account.flows, name: grown}
    if after < sentence.least:
        return False, ""
    usual = usual_peak([most for day, most in account.past.get(kept, ()) if day < today])
    if usual is None:
        return False, ""
    line = max(sentence.least - 1, usual * sentence.amount)
    if after <= line:
        return False, ""
    window = format_duration(sentence.window)
    return (
        before <= line,
        f"{after} {sentence.noun} in {window}, more than {sentence.amount} times the usual {usual}",
    )


@lru_cache(maxsize=64)
def _kept_as(sentence: Sentence) -> str:
    """The name of its busiest windows in ``past``."""
    return f"{sentence.noun}/{sentence.window}"


def _next_part(account: Account, name: str, sentence: Sentence, now: int, slot: int) -> Flow:
    """Begin with the part ``slot`` of the window; what has left the window is forgotten."""
    oldest = (now - sentence.window + 1) // max(1, sentence.window // PARTS)
    marks = account.seen()
    # What another sentence of this name has left is none of these, slots of a longer or shorter window among it.
    slots = {str(part) for part in range(oldest, slot + 1)}
    parts = {part: entry for part, entry in marks.get(name, {}).items() if part in slots}
    amount = parts[str(slot)][0] if str(slot) in parts else 0
    account.marks, account.past, account.urgent = {**marks, name: parts}, account.busiest(), True
    account.flows = {each: flow for each, flow in account.flows.items() if each != name}
    earlier = sum(entry[0] for entry in parts.values()) - amount
    return Flow(slot, earlier, amount, 0, _kept_as(sentence), now // DAY, 0)


def usual_peak(peaks: Sequence[int]) -> int | None:
    """The busiest window of an ordinary day: only one day in ten was busier. ``None`` while too few days are known."""
    if len(peaks) < DAYS_KNOWN:
        return None
    ordered = sorted(peaks)
    return ordered[(len(ordered) * 9 - 1) // 10]
