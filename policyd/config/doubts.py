"""What is no error in a configuration and most likely not meant: told by ``policyctl config check`` and at the start."""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Iterator

from policyd.config.sections import AlertSection, CheckSection, Config
from policyd.config.values import ANY
from policyd.dnsbl_sites import least_score, most_score
from policyd.geo import trouble as country_trouble
from policyd.opinion import ENFORCE, OFF
from policyd.request import MX
from policyd.senderpolicy import RESULTS
from policyd.sentence import SHARE

#: Checks that have no finding.
_FINDS_NOTHING = ("allow", "bans", "greylist", "quota", "sender_login")


def doubts(config: Config) -> list[str]:
    """One line each, ``FILE:LINE: check NAME: what; what to do``."""
    found = []
    checks = [check for check in config.checks if check.mode != OFF]
    for at, check in enumerate(checks):
        texts = list(_of_when(check, checks[:at]))
        if check.use == "quota":
            texts += _of_quota(check, config)
        elif check.use == "allow":
            texts += _of_allow(check, checks[:at], checks[at + 1 :])
        elif check.use == "greylist":
            texts += _of_greylist(check, checks[:at])
        found += [f"{check.place}: check {check.name!r}: {text}" for text in texts]
    found += _of_detects(config, checks)
    found += [
        f"{config.path}: alert {channel.name!r}: {text}"
        for channel in config.channels
        for text in _of_alert(channel)
    ]
    if checks and not any(check.use == "bans" for check in checks):
        found.append(f'{config.path}: there is no check "bans", so policyctl ban has no effect; add it')
    return found


def _of_detects(config: Config, checks: list[CheckSection]) -> Iterator[str]:
    detects = [detect for detect in config.detects if detect.section.mode != OFF]
    refusing = any(
        check.use == "bans" and check.mode == ENFORCE and check.direction != MX for check in checks
    )
    for section, place in detects:
        at = f"{place}: detector {section.name!r}: "
        if section.then == "suspend" and section.mode == ENFORCE and not refusing:
            yield (
                at
                + 'suspends, and no check "bans" that enforces for submission refuses who is suspended; add it'
            )
        if section.when.kind == SHARE:
            yield at + "finds nothing yet: delivery results are not fed by this version"
        if section.when.noun == "countries":
            if not config.country_database:
                yield (
                    at
                    + "finds nothing without [site] country_database; name a country database of MaxMind's format"
                )
            elif why := country_trouble(config.country_database):
                yield at + f"finds nothing: {why}"
        if section.when.noun == "listed clients" and not any(
            check.use == "dnsbl" and check.direction != MX and check.options.lookup == "client"
            for check in checks
        ):
            yield (
                at
                + 'finds nothing without a check "dnsbl" for submission that looks up clients; in shadow it refuses nobody'
            )


def _of_when(check: CheckSection, before: list[CheckSection]) -> Iterator[str]:
    named = {other.name: other for other in before}
    for condition in check.when:
        other = named.get(condition.check)
        use = other.use if other is not None else ""
        if use == "spf" and condition.wanted not in RESULTS:
            yield f"when = {str(condition)!r} names no result of SPF; write one of {', '.join(RESULTS)}"
        elif use == "dnsbl" and not isinstance(condition.wanted, int):
            yield f"when = {str(condition)!r} compares a score with a word; write '{condition.check} >= 1'"
        elif other is not None and use == "dnsbl":
            low, high = least_score(other.options.sites), most_score(other.options.sites)
            # If it holds of none of these, it holds of no score between.
            scores = (low, high, min(max(low, int(condition.wanted)), high))
            if not any(condition.holds({condition.check: score}) for score in scores):
                sums = f"the weights of {other.name} add up to {low} at least and {high} at most"
                yield f"when = {str(condition)!r} never holds: {sums}; compare with one of these or between"
        elif use in _FINDS_NOTHING:
            yield f"when = {str(condition)!r} never holds, for {use} finds nothing to compare; name a dnsbl or spf check"


def _of_alert(channel: AlertSection) -> Iterator[str]:
    if not channel.secret_file:
        return
    try:
        mode = os.stat(channel.secret_file).st_mode
    except PermissionError:
        # Whoever asks need not be policyd.
        return
    except OSError as error:
        yield f"secret_file {channel.secret_file}: {error.strerror}; make it, or remove the key"
        return
    if mode & 0o007:
        yield f"secret_file {channel.secret_file} is open to everybody; chmod 0640 it, and make another secret"


def _of_greylist(check: CheckSection, before: list[CheckSection]) -> Iterator[str]:
    name = check.options.spf
    # Most have none of this name, and need none.
    if name and name != "spf" and not any(other.name == name and other.use == "spf" for other in before):
        yield f'spf = {name!r} names no spf check that stands before it; correct the name, or write spf = ""'


def _of_quota(check: CheckSection, config: Config) -> Iterator[str]:
    if check.options.limits:
        return
    if not config.tiers.all:
        yield (
            "has no limits, and there are no tiers: nothing is counted but for accounts that get own limits by "
            'policyctl quota set; write limits = ["200 recipients per 1h"], or add [tiers] and [tier.NAME]'
        )
    elif not any(tier.limits for tier in config.tiers.all.values()):
        yield 'no tier has limits, so nothing is counted; write limits = ["200 recipients per 1h"] in [tier.NAME]'


def _of_allow(check: CheckSection, before: list[CheckSection], after: list[CheckSection]) -> Iterator[str]:
    # Before or behind the bans is the admin's choice, where those it lets pass cannot be forged.
    before, after = (
        [
            other
            for other in others
            if ANY in (check.direction, other.direction) or other.direction == check.direction
        ]
        for others in (before, after)
    )
    if not after:
        yield "stands last and ends a chain that ends anyway, so it has no effect; put it first"
        return
    spares_not = [other.name for other in before if other.use not in ("allow", "bans")]
    if spares_not:
        yield f"spares nobody what stands before it ({', '.join(spares_not)}); put it first"
    forgeable = [key for key in ("senders", "domains") if getattr(check.options, key)]
    if forgeable and any(other.use == "bans" for other in after):
        yield (
            f"lets pass by {' and '.join(forgeable)}, which anybody can write, before bans are asked; put the check bans "
            "before it, or allow clients"
        )


def missing_places(config: Config) -> list[str]:
    """Directories that the daemon needs and that are not there, each with the command that makes it."""
    wanted = {os.path.dirname(config.store.path): "the database ([store] url)"}
    for sink in config.log.decisions:
        kind, _, path = sink.partition(":")
        if kind == "file":
            wanted.setdefault(os.path.dirname(os.path.abspath(path)), "the decision log ([log] decisions)")
    for listener in config.server.listen:
        if listener.kind == "unix":
            directory = os.path.dirname(listener.address.partition(":")[2])
            wanted.setdefault(directory, f"the listener {listener.address}")
    return [
        f"{directory}: there is no such directory, for {what}; make it with '{_command(directory)}'"
        for directory, what in wanted.items()
        if not _is_there(directory)
    ]


def _is_there(directory: str) -> bool:
    """Whether the directory is there, or may be: what we may not look at is not said to be missing."""
    try:
        os.stat(directory)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return os.path.isdir(directory)


def _command(directory: str) -> str:
    try:
        pwd.getpwnam("policyd")
    except KeyError:
        return f"mkdir -p {shlex.quote(directory)}"
    # Within Postfix's queue directory its processes have to come by: contrib/postfix/README.md.
    rights = "-g postfix -m 2750" if "/postfix/" in f"{directory}/" else "-g policyd -m 0750"
    return f"install -d -o policyd {rights} {shlex.quote(directory)}"
