"""Rules about Postfix's lists: is policyd asked, once, at the stages that the policy needs, and not hidden by a permit."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from policyd.doctor.facts import CRITICAL, WARNING, Facts, Finding
from policyd.opinion import OFF
from policyd.postfix import lists
from policyd.postfix.addresses import is_ours
from policyd.postfix.settings import END_OF_DATA, LISTS, RECIPIENT, RELAY, Entry, Settings, postconf

ENABLE = "policyctl postfix enable"
_WRONG = tuple(name for name in LISTS if name not in (RECIPIENT, END_OF_DATA))


def ours(facts: Facts, item: lists.Item) -> bool:
    """Whether a restriction asks policyd, be it at an address that is not quite right."""
    if facts.postfix is None or item.name != lists.POLICY_SERVICE:
        return False
    addresses = [address for address, _ in facts.listeners]
    return is_ours(item, addresses, facts.postfix.queue_directory) or alike(facts, item)


def alike(facts: Facts, item: lists.Item) -> bool:
    """Whether the address is not policyd's and most likely meant to be: the same port, or the name of the socket."""
    if item.name != lists.POLICY_SERVICE:
        return False
    kind, _, rest = lists.policy_service(item.argument).address.partition(":")
    addresses = [address for address, _ in facts.listeners]
    if kind == "inet":
        port = rest.rpartition(":")[2]
        return any(
            address.startswith("inet:") and address.rpartition(":")[2] == port for address in addresses
        )
    return rest.endswith("policyd/policy.sock")


def place(entry: Entry | None) -> str:
    """Where a list stands, for people."""
    return f"master.cf, {entry.name}" if entry is not None else "main.cf"


def asking(facts: Facts) -> Iterator[tuple[Entry, str, Entry | None, list[lists.Item]]]:
    """Each list that smtpd has: the service, the list, where it stands (``None``: main.cf), and its restrictions."""
    settings = facts.postfix
    assert settings is not None
    for entry in settings.entries:
        if entry.type not in ("inet", "pass"):
            continue
        for name in LISTS:
            yield entry, name, entry if name in entry.raw else None, settings.items(entry, name)


def _once(found: Iterator[tuple[object, Finding]]) -> Iterator[Finding]:
    """Each finding once, however many services have the list."""
    seen = set()
    for key, finding in found:
        if key not in seen:
            seen.add(key)
            yield finding


def wrong_list(facts: Facts) -> Iterator[Finding]:
    """policyd in a list other than the two it belongs in."""
    settings = facts.postfix
    if settings is None:
        return

    def found() -> Iterator[tuple[object, Finding]]:
        for _, name, where, items in asking(facts):
            if name in _WRONG and any(ours(facts, item) for item in items):
                key = where.key if where else ""
                yield (
                    (name, key),
                    Finding(
                        "wrong-list",
                        WARNING,
                        f"{name} ({place(where)}) asks policyd",
                        "there it is asked before the recipient is known, or again for each recipient; it belongs in "
                        "smtpd_recipient_restrictions and smtpd_end_of_data_restrictions alone",
                        _without(facts, settings, where, name),
                    ),
                )

    yield from _once(found())


def _without(facts: Facts, settings: Settings, where: Entry | None, name: str) -> str:
    """The command that takes policyd out of a list."""
    raw = settings.raw_of(where, name)

    def asks(item: lists.Item) -> bool:
        named = settings.values.get(item.name.strip("${}()"), "") if item.name.startswith("$") else str(item)
        return any(ours(facts, each) for each in lists.items(named))

    rest = [item for item in lists.items(raw) if not asks(item)]
    base = postconf(settings.directory)
    if where is not None:
        return shlex.join([*base, "-P", f"{where.key}/{name}={','.join(map(str, rest))}"])
    return shlex.join([*base, "-e", f"{name} = {lists.written(rest)}"])


def _counts_at_end(facts: Facts) -> bool:
    return facts.config is not None and any(
        check.use == "quota" and facts.mode(check.name) != OFF and check.options.count_at == "end-of-message"
        for check in facts.config.checks
    )


def not_asked(facts: Facts) -> Iterator[Finding]:
    """A service at which policyd is asked nowhere, or at one stage of two."""
    settings = facts.postfix
    # Where policyd listens stands in its configuration.
    if settings is None or facts.config is None:
        return

    def found() -> Iterator[tuple[object, Finding]]:
        main_asks = any(ours(facts, item) for item in settings.items(None, RECIPIENT))
        for entry in settings.entries:
            if entry.type not in ("inet", "pass") or settings.reinjects(entry):
                continue
            asks = {
                name: any(ours(facts, item) for item in settings.items(entry, name))
                for name in (RECIPIENT, END_OF_DATA)
            }
            submits = settings.submits(entry)
            who = "users' mail" if submits else "mail"
            if not any(asks.values()):
                yield (
                    entry.key,
                    Finding(
                        "not-asked",
                        CRITICAL,
                        f"Postfix never asks policyd about {who} that comes in at {entry.name}",
                        "no ban, limit or list holds there",
                        ENABLE,
                    ),
                )
            elif not asks[RECIPIENT]:
                override = RECIPIENT in entry.raw and main_asks
                where = entry.key if RECIPIENT in entry.raw else ""
                what = f"the entry {entry.name} of master.cf sets {RECIPIENT} itself, without policyd"
                yield (
                    (RECIPIENT, where),
                    Finding(
                        "submission-overrides" if submits and override else "not-asked-rcpt",
                        WARNING,
                        what
                        if override
                        else f"{RECIPIENT} ({place(entry if where else None)}) does not ask policyd",
                        "what is decided at RCPT does not hold there: bans, accounts without room, blocklists, SPF, greylisting",
                        ENABLE,
                    ),
                )
            elif not asks[END_OF_DATA] and _counts_at_end(facts):
                where = entry.key if END_OF_DATA in entry.raw else ""
                yield (
                    (END_OF_DATA, where),
                    Finding(
                        "not-asked-end",
                        CRITICAL,
                        f"{END_OF_DATA} ({place(entry if where else None)}) does not ask policyd",
                        "the limits count at the end of the message, so nothing is counted and no limit holds",
                        ENABLE,
                    ),
                )

    yield from _once(found())


def hidden(facts: Facts) -> Iterator[Finding]:
    """A permit, or a refusal of all, before policyd."""
    if facts.postfix is None:
        return

    def found() -> Iterator[tuple[object, Finding]]:
        for _, name, where, items in asking(facts):
            at = next((at for at, item in enumerate(items) if ours(facts, item)), None)
            if at is None or name not in (RECIPIENT, END_OF_DATA):
                continue
            by = [item.name for item in items[:at] if item.name in lists.HIDES or lists.ends(item)]
            if by:
                whom = {
                    "permit_mynetworks": "clients in mynetworks",
                    "permit_sasl_authenticated": "users who have logged in",
                }.get(by[0], "whom that fits")
                yield (
                    (name, where.key if where else ""),
                    Finding(
                        "hidden",
                        CRITICAL,
                        f"{name} ({place(where)}) has {by[0]} before policyd",
                        f"the list ends there for {whom}: policyd is never asked about them",
                        ENABLE,
                    ),
                )

    yield from _once(found())


def listed_twice(facts: Facts) -> Iterator[Finding]:
    """policyd twice in one list."""
    if facts.postfix is None:
        return

    def found() -> Iterator[tuple[object, Finding]]:
        for _, name, where, items in asking(facts):
            times = sum(ours(facts, item) for item in items)
            if times > 1:
                yield (
                    (name, where.key if where else ""),
                    Finding(
                        "listed-twice",
                        WARNING,
                        f"{name} ({place(where)}) asks policyd {times} times",
                        "each answer is waited for, and what is recorded looks as if mail came twice",
                        ENABLE,
                    ),
                )

    yield from _once(found())


def before_relay_check(facts: Facts) -> Iterator[Finding]:
    """policyd asked about mail that this machine does not even take."""
    settings = facts.postfix
    if settings is None:
        return

    def found() -> Iterator[tuple[object, Finding]]:
        for entry, name, where, items in asking(facts):
            at = next((at for at, item in enumerate(items) if ours(facts, item)), None)
            if name != RECIPIENT or at is None or settings.submits(entry) or settings.reinjects(entry):
                continue
            guards = [
                item.name
                for item in [*settings.items(entry, RELAY), *items[:at]]
                if item.name in lists.GUARDS
            ]
            if not guards:
                yield (
                    where.key if where else "",
                    Finding(
                        "before-relay-check",
                        WARNING,
                        f"{name} ({place(where)}) asks policyd before reject_unauth_destination, and {RELAY} is empty",
                        "policyd is asked about every attempt to relay, and fills its records and the DNS with them",
                        shlex.join(
                            [
                                *postconf(settings.directory),
                                "-e",
                                f"{RELAY} = permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination",
                            ]
                        ),
                    ),
                )

    yield from _once(found())


def reinjection_asked(facts: Facts) -> Iterator[Finding]:
    """Mail that a content filter gives back asked about again."""
    settings = facts.postfix
    if settings is None:
        return
    for entry in settings.entries:
        both = (RECIPIENT, END_OF_DATA)
        asks = [name for name in both if any(ours(facts, item) for item in settings.items(entry, name))]
        if settings.reinjects(entry) and asks:
            yield Finding(
                "reinjection-asked",
                WARNING,
                f"the listener {entry.name}, at which a content filter gives mail back, asks policyd ({', '.join(asks)})",
                "each message is asked about twice, the second time in the name of the filter's address",
                ENABLE,
            )


def hold_with_proxy_filter(facts: Facts) -> Iterator[Finding]:
    """HOLD where Postfix cannot hold."""
    if facts.postfix is None or facts.config is None:
        return
    holding = [
        check.name
        for check in facts.config.checks
        if check.use == "quota" and check.options.on_breach == "hold" and facts.mode(check.name) == "enforce"
    ]
    filtered = [
        entry.name for entry in facts.postfix.entries if facts.postfix.of(entry, "smtpd_proxy_filter")
    ]
    if holding and filtered:
        yield Finding(
            "hold-with-proxy-filter",
            CRITICAL,
            f'check {", ".join(holding)} says on_breach = "hold", and {", ".join(filtered)} has smtpd_proxy_filter',
            "a message that goes through smtpd_proxy_filter cannot be put on hold: Postfix ignores the answer, and mail over "
            "the limit goes out",
            f'on_breach = "defer" in check {holding[0]} of policyd.toml, or content_filter in place of smtpd_proxy_filter',
        )


def undefined(facts: Facts) -> Iterator[Finding]:
    """A parameter that a list names and nobody set."""
    for complaint in facts.postfix.complaints if facts.postfix is not None else ():
        if "undefined parameter" in complaint:
            name = complaint.rpartition(": ")[2]
            yield Finding(
                "undefined-parameter",
                WARNING,
                f"main.cf or master.cf names ${name}, which nobody has set",
                "it stands for nothing: what was meant to be asked or refused there is not",
                ENABLE
                if name.startswith(("policyd", "mua_"))
                else shlex.join(["postconf", "-e", f"{name} = VALUE"]),
            )


RULES = (
    wrong_list,
    not_asked,
    hidden,
    listed_twice,
    before_relay_check,
    reinjection_asked,
    hold_with_proxy_filter,
    undefined,
)
