"""How findings are shown: what checks and detectors did or would have done, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policyd.answer import escape
from policyd.cli.common import Times, table
from policyd.findings import ALERT, HEADER, HOLD, REFUSE, SUSPEND, Group

#: Accounts that are shown of each check or detector.
SHOWN = 5
_DONE = {REFUSE: "refused", HOLD: "held", SUSPEND: "suspended", ALERT: "alerted", HEADER: "marked"}


def lines_of(groups: Sequence[Group], times: Times) -> list[str]:
    """A table of what was found, and the accounts with the most of each."""
    if not groups:
        return []
    rows = [(g.name, g.mode, _DONE[g.what], g.count, _accounts(g)) for g in groups]
    lines = table(("name", "mode", "what", "times", "accounts"), rows).split("\n")
    for group in groups:
        lines += ["", f"{escape(group.name)}, {_DONE[group.what]}:"]
        most = group.most
        for one in most[:SHOWN]:
            first = times.text(one.first_at)
            lines.append(
                f"  {escape(one.user or 'no account')}  {one.count} from {first} on: {escape(one.reason, 200)}"
            )
        if len(most) > SHOWN or group.others:
            lines.append(f"  and {_more(group)} more")
    return lines


def _accounts(group: Group) -> str:
    return f"{len(group.accounts)}{'+' if group.others else ''}"


def _more(group: Group) -> str:
    return f"{len(group.accounts) - SHOWN}{' or' if group.others else ''}"


def records_of(groups: Sequence[Group], times: Times) -> list[dict[str, Any]]:
    """The same for programs, with every account that is known by name."""
    return [
        {
            "name": group.name,
            "mode": group.mode,
            "what": group.what,
            "times": group.count,
            "accounts": [
                {
                    "user": one.user,
                    "times": one.count,
                    "first": times.iso(one.first_at),
                    "last": times.iso(one.last_at),
                    "reason": one.reason,
                }
                for one in group.most
            ],
            "others": group.others,
        }
        for group in groups
    ]
