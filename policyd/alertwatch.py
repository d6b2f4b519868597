"""What of the daemon itself the admin is told: each of its troubles begins once, lasts, and is over once. No clock, no loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from policyd.alert import Event
from policyd.units import HOUR, MINUTE, format_duration

#: What the states below are about; what is suspended or used up the ledger tells.
KINDS = ("store-sick", "dns-down", "dnsbl-sick", "clock", "not-asked", "stage-missing")
#: A wall clock that was not stepped for so long stands still again, ms.
STEADY = HOUR
#: Looks in a row at which something is in trouble before that is told: a short lock of somebody else's is none.
LOOKS = 2


class State(NamedTuple):
    """How something is: in trouble, well, or ``None``: that is not known."""

    kind: str
    subject: str
    trouble: bool | None
    facts: Mapping[str, Any]


class Watch:
    """Makes events of states."""

    def __init__(self) -> None:
        #: What is in trouble, and the event that said so.
        self.active: dict[tuple[str, str], Event] = {}
        self._looks: dict[tuple[str, str], int] = {}
        #: What was said to be over, as long as it is said to be open.
        self._over: set[tuple[str, str]] = set()

    def look(
        self, states: Iterable[State], open_before: Iterable[tuple[str, str]], now: int, wall: int
    ) -> list[Event]:
        """What began and what is over since the last look. ``states`` are all that are watched.

        :param open_before: kinds and subjects that the admin was told of, by a daemon that ran before perhaps.
        """
        events = []
        known = {(state.kind, state.subject): state for state in states}
        for key, state in known.items():
            looks = self._looks[key] = self._looks.get(key, 0) + 1 if state.trouble else 0
            if looks >= LOOKS and key not in self.active:
                self._over.discard(key)
                event = self.active[key] = Event(0, now, wall, *key, False, dict(state.facts))
                events.append(event)
        told = set(open_before)
        self._over &= told
        for key in sorted({*self.active, *(told - self._over)}):
            now_is = known.get(key)
            if now_is is None or now_is.trouble is False:
                began = self.active.pop(key, None)
                facts = {"lasted": format_duration(_rounded(now - began.at))} if began is not None else {}
                if now_is is None:
                    facts["why"] = "it is not watched any more"
                events.append(Event(0, now, wall, *key, True, facts))
                self._over.add(key)
        self._looks = {key: looks for key, looks in self._looks.items() if key in known}
        return events


class Asked:
    """When Postfix asked last, as far as can be told from how much it asked."""

    def __init__(self, now: int) -> None:
        self._total = 0
        self._last = now
        self._ever = False

    def state(self, total: int, now: int, longest: int) -> State:
        """
        :param total: what was asked so far, less only where counting was begun anew.
        """
        if total > (self._total if total >= self._total else 0):
            self._last, self._ever = now, True
        self._total = total
        silent = now - self._last
        if silent >= longest:
            return State("not-asked", "Postfix", True, {"for": format_duration(_rounded(silent))})
        return State("not-asked", "Postfix", False if self._ever else None, {})


def clock_state(stepped: tuple[int, int], started: int, now: int) -> State:
    """The state of the wall clock: by how much it was stepped last, ms, and when."""
    moved, at = stepped
    if moved and now - at < STEADY:
        return State("clock", "wall clock", True, {"by": f"{moved / 1000:+.1f} s"})
    return State("clock", "wall clock", False if now - started >= STEADY else None, {})


def dns_states(report: Iterable[tuple[str, str, int, Mapping[str, Any]]], prefix: str) -> list[State]:
    """The states of the nameservers together, and of each blocklist.

    :param prefix: what the name of a blocklist begins with.
    """
    report, states = list(report), []
    answered = any(figures.get("answers") for _, _, _, figures in report)
    for name, state, _, figures in report:
        if name == "resolver":
            # Up by default, until one has answered: after a start nobody knows yet whether what was told is over.
            trouble = True if state == "down" else False if answered else None
            states.append(State("dns-down", "nameservers", trouble, {}))
        elif name.startswith(prefix):
            sick = state == "sick"
            # Well by default, likewise, until the first test has said so.
            trouble = True if sick else False if figures.get("tested_at") else None
            facts = {"why": figures.get("why", "")} if sick else {}
            states.append(State("dnsbl-sick", name.removeprefix(prefix), trouble, facts))
    return states


def _rounded(ms: int) -> int:
    """For people: whole minutes, or seconds where it is less."""
    return ms // MINUTE * MINUTE if ms >= MINUTE else max(1000, ms // 1000 * 1000)
