"""Rules about mail itself: what policyd was asked about, and what goes around it."""

from __future__ import annotations

from collections.abc import Iterator

from policyd.doctor.facts import CRITICAL, WARNING, Facts, Finding
from policyd.units import DAY, format_duration

#: Messages of root in a day that are more than what cron writes.
MANY_OF_ROOT = 100


def nothing_asked(facts: Facts) -> Iterator[Finding]:
    """A policyd that nobody has asked for a day."""
    if facts.asked is None or facts.database is None or not facts.running:
        return
    newest = facts.asked.newest or facts.database.oldest
    if newest and facts.database.now - newest > DAY:
        age = format_duration((facts.database.now - newest) // DAY * DAY)
        yield Finding(
            "nothing-asked",
            CRITICAL,
            f"nothing was asked for {age}",
            "either no mail came, or Postfix does not ask any more",
            "policyctl postfix show; tail /var/log/mail.log",
        )


def stage_missing(facts: Facts) -> Iterator[Finding]:
    """A check whose stage never arrives."""
    for line in facts.asked.missing if facts.asked is not None else ():
        what, _, mend = line.removeprefix("stage-missing: ").partition("; ")
        yield Finding(
            "stage-missing",
            WARNING,
            what,
            "the check does not do what its section says",
            mend or "policyctl postfix enable",
        )


def pickup(facts: Facts) -> Iterator[Finding]:
    """Mail that local programs give to sendmail(1): nobody is asked about it."""
    if (
        facts.log is None
        or facts.postfix is None
        or "content_filter=" in facts.postfix.commands.get("pickup/unix", "")
    ):
        return
    counts = {
        (uid, name): count
        for (uid, name), count in facts.log.pickup.items()
        if uid != 0 or count > MANY_OF_ROOT
    }
    if counts:
        busiest = sorted(counts.items(), key=lambda each: -each[1])
        shown = ", ".join(f"{count} by {name} (uid {uid})" for (uid, name), count in busiest[:5])
        others = f" and {len(busiest) - 5} more users" if len(busiest) > 5 else ""
        names = ", ".join(f"!{name}" for (uid, name), _ in busiest[:5] if uid)
        yield Finding(
            "pickup",
            WARNING,
            f"{sum(counts.values())} messages of the last day came in by sendmail(1): {shown}{others}",
            "pickup(8) asks no policy server: a hijacked web application goes around every ban and limit",
            f"postconf -e 'authorized_submit_users = {names or '!www-data'}, static:all', and let them log in on port 587; "
            "or the last entries of contrib/postfix/master.cf",
        )


def log_failures(facts: Facts) -> Iterator[Finding]:
    """Postfix says that it cannot ask."""
    if facts.log is not None and facts.log.failures and facts.running:
        yield Finding(
            "cannot-ask",
            CRITICAL,
            f"in the last hour Postfix could not ask policyd {facts.log.failures} times",
            "default_action held for that mail",
            f"grep 'problem talking to server' {facts.log.place}; policyctl status",
        )


RULES = (nothing_asked, stage_missing, pickup, log_failures)
