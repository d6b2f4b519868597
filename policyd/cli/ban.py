"""``policyctl ban``, ``unban``, ``bans``: who is refused from the next request on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from policyd.answer import escape
from policyd.cli import entries
from policyd.cli.common import Session, Terms, Times, json_option, known_user, pass_session, steering_options
from policyd.errors import NotFound, UserError
from policyd.opinion import ENFORCE
from policyd.steering import BAN_KINDS, client_network

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

#: The kind under which 'bans' lists suspended logins.
SUSPENDED = "suspended"


@click.command()
@entries.kind_argument(BAN_KINDS)
@entries.values_argument
@click.option("--force", is_flag=True, help="Also a login that was never seen.")
@steering_options()
@json_option
@pass_session
def add_ban(session: Session, kind: str, values: tuple[str, ...], force: bool, terms: Terms) -> None:
    """Refuse VALUE from the next request on, also within sessions that are open.

    \b
    policyctl ban user alice@example.org --for 24h --reason 'phished, ticket 4711'
    policyctl ban sender news@example.net
    policyctl ban domain example.net         the domain and all below it; .example.net: below it only
    policyctl ban client 192.0.2.0/24        an address, a network or a host name
    policyctl ban client -                   a list on stdin, one a line

    Without --for or --until it holds until 'policyctl unban KIND VALUE'. A ban that is set again is replaced.
    Also: ban list, ban show KIND VALUE, ban rm KIND VALUE.
    """

    banned: list[str] = []

    def objection(connection: sqlite3.Connection, value: str) -> None:
        banned.append(value)
        _refuse_never(session, kind, value)
        if kind == "user":
            known_user(connection, value, force)

    entries.add(session, "ban", kind, values, terms, objection)
    entries.warn_without(session, "bans", "ban")
    _warn_own(session, kind, banned)
    _warn_allowed(session, kind, banned)


@click.command()
@entries.kind_argument(BAN_KINDS)
@entries.values_argument
@steering_options(lasts=False)
@json_option
@pass_session
def remove_ban(session: Session, kind: str, values: tuple[str, ...], terms: Terms) -> None:
    """Lift the ban on VALUE; '-' reads a list from stdin.

    A login that is suspended is not banned: 'policyctl release USER' ends that.
    """
    try:
        removed = entries.remove(session, "ban", kind, values, terms)
    except NotFound:
        if kind == "user" and (held := _suspended(session, values)):
            raise NotFound("\n".join(held)) from None
        raise
    if kind == "user":
        for text in _suspended(session, removed):
            session.note(text)


@click.command()
@entries.kind_argument((*BAN_KINDS, SUSPENDED), required=False)
@json_option
@pass_session
def list_bans(session: Session, kind: str | None) -> None:
    """List the bans in force, of one kind or all, and the suspended logins."""
    if kind in (None, SUSPENDED):
        none = "nobody is suspended" if kind else "nothing is banned, nobody is suspended"
        entries.listing(session, "ban", kind, also=_suspensions, none=none)
    else:
        entries.listing(session, "ban", kind)


@click.command()
@entries.kind_argument(BAN_KINDS)
@entries.values_argument
@json_option
@pass_session
def show_ban(session: Session, kind: str, values: tuple[str, ...]) -> None:
    """Show the ban on VALUE."""
    try:
        entries.listing(session, "ban", kind, values)
    except NotFound:
        if kind == "user" and (held := _suspended(session, values)):
            raise NotFound("\n".join(held)) from None
        raise


def _suspended(session: Session, values: Iterable[str]) -> list[str]:
    """For each of these logins that is suspended, what that is and what ends it."""
    from policyd.cli.accounts import release_command, suspension_in_force, suspension_text

    found = []
    with session.reading() as connection:
        times = Times.of(connection)
        for value in values:
            if value == "-":
                continue
            user = entries.canonical(session, "user", value)
            row = suspension_in_force(connection, user, times.now)
            if row is not None:
                found.append(
                    f"user {escape(user)} is {suspension_text(row, times)}; '{release_command(user)}' ends it"
                )
    return found


def _suspensions(connection: sqlite3.Connection, times: Times) -> list[entries.Shown]:
    """The suspensions in force, as they stand among the bans."""
    from policyd.store import admin, dump

    return [
        entries.Shown(
            {"kind": SUSPENDED, "value": row.user, **dump.record("suspension", row, times.ahead)},
            (
                SUSPENDED,
                row.user,
                times.until(row.expires_at) if row.expires_at else "it is released",
                row.author or row.detector,
                times.text(row.created_at),
                row.reason,
            ),
        )
        for row in admin.rows(connection, "suspension", times.now)
    ]


def never_bans(session: Session, kind: str, value: str) -> str:
    """The entry of a bans check's never list for which a ban on ``value`` would not hold; ``""`` when there is none."""
    from policyd.match import domain_of

    for check in session.config.checks:
        if check.use != "bans":
            continue
        for never in check.options.never:
            kept, asked = client_network(never), client_network(value)
            if kind == "client":
                # Like with like; a network around the kept one may be banned, and spares it.
                if kept is not None and asked is not None and kept.version == asked.version:
                    if asked.subnet_of(kept):  # type: ignore[arg-type]
                        return str(never)
            elif never in (value, domain_of(value)):
                return str(never)
    return ""


def _warn_own(session: Session, kind: str, values: list[str]) -> None:
    """Remark which of the values are the site's own, or everybody: a slip at night must not stop all mail unseen."""
    site = session.config.site
    for value in values:
        own: list[str] = []
        if kind == "domain":
            own = sorted(
                each for each in site.domains if each == value or each.endswith(f".{value.lstrip('.')}")
            )
        network = client_network(value) if kind == "client" else None
        if network is not None:
            inside = [
                each
                for each in site.networks
                if each.version == network.version and each.subnet_of(network)  # type: ignore[arg-type]
            ]
            own = ["every client"] if not network.prefixlen else [str(each) for each in inside]
        if own:
            shown = ", ".join(own[:3]) + (", ..." if len(own) > 3 else "")
            what = f"is {shown}" if own == ["every client"] else f"covers {shown} of [site]"
            session.note(
                f"{kind} {value} {what}: your own mail is refused, too; 'policyctl unban {kind} {value}' lifts it"
            )


def _warn_allowed(session: Session, kind: str, values: list[str]) -> None:
    """Remark which of the values an allow lets pass before the bans are asked."""
    from policyd.checks import Context
    from policyd.checks.allow import Check
    from policyd.cli.examples import fitting, typical
    from policyd.store.clock import ledger_now
    from policyd.store.steering_sync import SteeringMirror

    config = session.config
    uses = [check.use for check in config.checks]
    before = config.checks[: uses.index("bans")] if "bans" in uses else ()
    allows = [check for check in before if check.use == "allow"]
    if not allows:
        return
    with session.reading() as connection:
        now, mirror = ledger_now(connection), SteeringMirror(connection)
        mirror.load()
        for value in values:
            for section in allows:
                if (mirror.steering.mode_of(section.name, now) or section.mode) != ENFORCE:
                    continue
                check = Check(
                    section.options, Context(section.name, section.direction, config.site, config.tiers)
                )
                request = (
                    typical(config.site, connection, value)[0]
                    if kind == "user"
                    else fitting(config.site, kind, value, section.direction.removeprefix("any"))
                )
                allowed = check.judge(request, now, mirror.steering)
                if allowed is None or section.direction not in ("any", request.direction):
                    continue
                session.note(
                    f"{escape(allowed.reason)} (check {section.name}) comes before the bans and fits {kind} "
                    f"{entries.shown(value)} too: where both do, the ban has no effect; take the allow back, or put the check "
                    f"'bans' first in {session.config_path}"
                )
                break


def _refuse_never(session: Session, kind: str, value: str) -> None:
    never = never_bans(session, kind, value)
    if never:
        by = "" if never == value else f" by {escape(never)}"
        raise UserError(
            f"{kind} {entries.shown(value)} is covered{by} in the never list of the check 'bans', so a ban would not hold; "
            f"take it out of {session.config_path} first"
        )
