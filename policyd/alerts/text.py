"""An alert in words: a title, the facts, and the commands to look, to act and to undo. What came from outside is escaped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from policyd.alert import KINDS, TEST, Alert
from policyd.answer import escape, shell_word
from policyd.units import UNITS, format_duration

_YEAR_9000 = 221_845_392_000_000
#: Values of one fact that are written out.
MOST_VALUES = 20


class Words(NamedTuple):
    """An alert for people."""

    title: str
    #: Facts: what, and how it is.
    facts: tuple[tuple[str, str], ...]
    #: Commands: what for, and what to type.
    commands: tuple[tuple[str, str], ...]

    def text(self) -> str:
        """All of it, in lines of ASCII."""
        rows = [*self.facts, *self.commands]
        width = max((len(name) for name, _ in rows), default=0)
        parts = [[self.title]]
        for some in (self.facts, self.commands):
            parts.append([f"{name.ljust(width)}  {value}" for name, value in some])
        return "\n\n".join("\n".join(part) for part in parts if part)


def words(alert: Alert) -> Words:
    """The alert in words."""
    if alert.count > 1 or (not alert.subject and "events" in alert.facts):
        return _gathered(alert)
    title = _title(alert.kind, alert.subject, alert.resolved, alert.facts, alert.wall_at)
    facts = [("since" if not alert.resolved else "at", stamp(alert.wall_at))]
    facts += _facts(alert.facts)
    return Words(title, tuple(facts), tuple(_commands(alert)))


def stamp(wall_ms: int) -> str:
    """A moment in the local zone."""
    if not 0 <= wall_ms < _YEAR_9000:
        return f"{wall_ms} ms"
    return datetime.fromtimestamp(wall_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def _gathered(alert: Alert) -> Words:
    noted = alert.facts.get("events")
    events = [each for each in noted if isinstance(each, Mapping)] if isinstance(noted, list) else []
    title = f"{alert.count} times {alert.kind}: {KINDS.get(alert.kind, alert.kind)}"
    facts = [("since", stamp(alert.wall_at))]
    for each in events:
        of, at = each.get("facts"), _whole(each.get("wall_at"))
        said = _title(
            alert.kind,
            str(each.get("subject", "")),
            bool(each.get("resolved")),
            of if isinstance(of, Mapping) else {},
            at,
        )
        facts.append((stamp(at), said))
    left_out = alert.facts.get("left_out")
    if left_out:
        facts.append(("and", f"{left_out} more"))
    return Words(title, tuple(facts), (("look", "policyctl alert list"), ("look", "policyctl status")))


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _title(kind: str, subject: str, resolved: bool, facts: Mapping[str, Any], wall_at: int) -> str:
    who = escape(subject)
    match kind:
        case "suspend" if resolved:
            by = escape(str(facts.get("by") or ""))
            return f"{who} may send again" + (f", released by {by}" if by else "")
        case "suspend":
            lasts = _whole(facts.get("lasts"))
            ends = f"until {stamp(wall_at + lasts)}" if lasts else "until it is released"
            return f"{who} is suspended {ends}"
        case "detect":
            return f"{who}: {escape(str(facts.get('reason') or facts.get('when') or 'a detector found something'))}"
        case "quota-80%" | "quota-100%":
            window = facts.get("window")
            per = f" per {format_duration(window)}" if isinstance(window, int) and window > 0 else ""
            unit = escape(str(facts.get("unit", "")))
            used = f"{facts.get('used')} of {facts.get('limit')} {unit}{per}"
            return f"{who} has used {escape(used)}"
        case "dnsbl-sick":
            return f"blocklist {who} " + (
                "works again" if resolved else "does not work and counts nothing: mail goes on without it"
            )
        case "dns-down":
            return (
                "the nameservers answer again"
                if resolved
                else "no nameserver answers: mail goes on without blocklists and SPF"
            )
        case "store-sick":
            return (
                "the database is written again"
                if resolved
                else "the database cannot be written: policyd decides and counts in memory"
            )
        case "clock" if resolved:
            return "the wall clock has not been stepped any more"
        case "clock":
            return f"the wall clock was stepped by {escape(str(facts.get('by', '?')))}; limits and bans go on by elapsed time"
        case "not-asked" if resolved:
            return "Postfix asks again"
        case "not-asked":
            return f"Postfix has asked nothing for {escape(str(facts.get('for', '?')))}: mail goes on unchecked, or not at all"
        case "stage-missing":
            return f"{who}: " + ("Postfix asks there now" if resolved else "Postfix never asks there")
        case _ if kind == TEST:
            return "a test of this channel"
    return f"{who}: {escape(kind)}" + (" is over" if resolved else "")


#: Facts by their names, in the order in which they are written; others follow.
_NAMES = {
    "why": "why",
    "reason": "why",
    "when": "rule",
    "detector": "detector",
    "check": "check",
    "values": "found",
    "step": "step",
    "client": "client",
    "sender": "sender",
    "passed": "got out, last day",
    "helo": "HELO",
    "ref": "reference",
    "times_before": "held back before",
    "by": "by",
    "how": "how",
    "note": "note",
}
#: In the title already, or only for programs.
_UNTOLD = frozenset({"lasts", "used", "limit", "unit", "window", "scope", "decisions", "for"})


def _facts(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, label in _NAMES.items():
        value = facts.get(name)
        if value not in (None, "", [], {}):
            yield label, _shown(value)
    for name, value in facts.items():
        if name not in _NAMES and name not in _UNTOLD and value not in (None, "", [], {}):
            yield escape(str(name), 40), _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        shown = ", ".join(escape(str(each), 100) for each in value[:MOST_VALUES])
        more = len(value) - MOST_VALUES
        return f"{len(value)}: {shown}" + (f" and {more} more" if more > 0 else "")
    if isinstance(value, Mapping):
        return ", ".join(
            f"{escape(str(each), 100)} {escape(str(name), 40)}"
            for name, each in list(value.items())[:MOST_VALUES]
        )
    return escape(value if isinstance(value, str) else json.dumps(value), 400)


def _commands(alert: Alert) -> Iterator[tuple[str, str]]:
    who = shell_word(alert.subject)
    ref = alert.facts.get("ref")
    match alert.kind:
        case "quota-80%" | "quota-100%":
            yield from _about_quota(who, alert.facts)
        case "suspend" | "detect":
            yield "look", f"policyctl user show {who}"
            if isinstance(ref, str) and ref:
                yield "look", f"policyctl explain {shell_word(ref)}"
            if alert.resolved:
                return
            yield "what got out", f"policyctl log --user {who} --since 1d --action pass"
            yield "in the queue", f"policyctl queue {who}"
            yield "act", f"policyctl queue {who} --hold"
            if alert.kind == "suspend":
                yield "undo", f"policyctl release {who} --note 'password changed'"
            else:
                yield "act", f"policyctl ban user {who} --for 1d"
        case "dnsbl-sick":
            yield "look", f"policyctl dnsbl show {who}"
            if not alert.resolved:
                yield "act", f"policyctl dnsbl off {who}"
                yield "undo", f"policyctl dnsbl on {who}"
        case "store-sick":
            yield "look", "policyctl db check"
            if path := alert.facts.get("path"):
                yield "look", f"df -h {shell_word(str(path))}"
        case "not-asked" | "stage-missing":
            yield "look", "postconf -n | grep check_policy_service"
            yield "look", "policyctl status"
        case "clock":
            yield "look", "timedatectl"
        case "dns-down":
            yield "look", "policyctl status"
        case _ if alert.kind == TEST:
            yield "look", "policyctl alert list --all"


def _about_quota(who: str, facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    scope, unit, limit, window = (facts.get(name) for name in ("scope", "unit", "limit", "window"))
    if scope in (None, "user"):
        yield "look", f"policyctl user show {who}"
        if unit in UNITS and isinstance(limit, int) and limit > 0:
            yield "widen", f"policyctl grant {who} {limit} {unit} --for 1d"
    elif unit in UNITS and isinstance(window, int) and window > 0:
        # What is no account has no grant.
        per = f"--per {shell_word(str(scope))} --unit {unit} --window {format_duration(window)}"
        yield "look", f"policyctl quota top {per}"
