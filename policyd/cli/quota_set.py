"""``policyctl quota set|unset|reset|list``: an account's own limits, and what it has used."""

from __future__ import annotations

from collections.abc import Sequence

import click

from policyd.answer import escape
from policyd.cli.common import (
    Session,
    Terms,
    Times,
    canonical_user,
    json_option,
    known_user,
    pass_session,
    steering_options,
    usage_errors,
)
from policyd.errors import NotFound
from policyd.steering import UserLimit
from policyd.units import UNITS, Limit, format_duration


@click.command()
@click.argument("user")
@click.argument("limits", nargs=-1, required=True, metavar="LIMIT...")
@click.option(
    "--force", is_flag=True, help="Also for a login that was never seen, or a limit that is not there."
)
@steering_options()
@json_option
@pass_session
def set_limits(session: Session, user: str, limits: tuple[str, ...], force: bool, terms: Terms) -> None:
    """Give USER limits of its own.

    \b
    policyctl quota set alice@example.org '500 recipients per 1h' '1GB per 1d'
    policyctl quota set alice@example.org 'unlimited recipients per 1d' --for 7d

    Each replaces the limit of the same unit and window, whether of the tier or its own, or comes in addition.
    Nothing that was counted is lost.
    """
    from policyd.store import admin, dump

    user = canonical_user(session, user)
    with usage_errors():
        wanted = [dump.parse_own_limit(text) for text in split_limits(limits)]
        if len({(limit.unit, limit.window) for limit in wanted}) < len(wanted):
            raise ValueError("two limits have the same unit and window")
    records, lines = [], []
    with session.changing() as connection:
        known_user(connection, user, force)
        with admin.change(connection, terms.author, terms.reason, terms.dry_run) as change:
            times, expires = Times.of(connection), change.expires(terms.lasts)
            if not force:
                own = [row for row in admin.rows(connection, "user_limit", change.now) if row.user == user]
                _must_have(session, user, own, [limit for limit in wanted if limit.amount < 0])
            for limit in wanted:
                row = UserLimit(
                    user,
                    limit.unit,
                    limit.window,
                    limit.amount,
                    terms.reason,
                    terms.author,
                    change.now,
                    expires,
                )
                before = change.put("user_limit", row)
                text = _text(row)
                instead = f" (before: {_text(before)})" if before else ""
                change.record("quota set", user, f"{text}, until {times.until(expires)}{instead}")
                records.append(dump.record("user_limit", row, times.ahead))
                lines.append(f"{terms.prefix}{escape(user)}: {text}, until {times.until(expires)}{instead}")
    session.done({"dry_run": terms.dry_run, "set": records}, *lines)
    warn_without_user_quota(session)


@click.command()
@click.argument("user")
@click.argument("limits", nargs=-1, metavar="[LIMIT...]")
@steering_options(lasts=False)
@json_option
@pass_session
def unset_limits(session: Session, user: str, limits: tuple[str, ...], terms: Terms) -> None:
    """Take USER's own limits back: all, or those of a unit and window ('recipients per 1h').

    What the tier says holds again.
    """
    from policyd.store import admin, dump

    user = canonical_user(session, user)
    with usage_errors():
        named = {_unit_and_window(text) for text in split_limits(limits)}
    records, lines = [], []
    with (
        session.changing() as connection,
        admin.change(connection, terms.author, terms.reason, terms.dry_run) as change,
    ):
        times = Times.of(connection)
        own = [row for row in admin.rows(connection, "user_limit", change.now) if row.user == user]
        if not own:
            raise NotFound(f"{escape(user)} has no limits of its own; 'policyctl quota list' shows who has")
        for unit, window in named - {(row.unit, row.window) for row in own}:
            there = ", ".join(_text(row) for row in own)
            raise NotFound(
                f"{escape(user)} has no own limit of {unit} per {format_duration(window)}; it has {there}"
            )
        for row in own:
            if not named or (row.unit, row.window) in named:
                change.drop("user_limit", *row[:3])
                change.record("quota unset", user, f"was {_text(row)}")
                records.append(dump.record("user_limit", row, times.ahead))
                lines.append(f"{terms.prefix}{escape(user)}: no longer {_text(row)}")
    session.done({"dry_run": terms.dry_run, "removed": records}, *lines)


@click.command()
@click.argument("user", required=False)
@json_option
@pass_session
def list_limits(session: Session, user: str | None) -> None:
    """List the limits that accounts have of their own, of USER or all."""
    from policyd.store import admin, dump

    account = canonical_user(session, user) if user else ""
    with session.reading() as connection:
        times = Times.of(connection)
        found = admin.rows(connection, "user_limit", times.now)
    found = [row for row in found if not account or row.user == account]
    session.show(
        [dump.record("user_limit", row, times.ahead) for row in found],
        ("user", "limit", "until", "author", "set", "reason"),
        [
            (
                row.user,
                _text(row),
                times.until(row.expires_at),
                row.author,
                times.text(row.created_at),
                row.reason,
            )
            for row in found
        ],
        f"{escape(account)} has no limits of its own" if account else "no account has limits of its own",
    )


@click.command()
@click.argument("user")
@steering_options(lasts=False)
@json_option
@pass_session
def reset_usage(session: Session, user: str, terms: Terms) -> None:
    """Forget what USER has used in every window: it begins anew with the next request."""
    from policyd.store import admin

    user = canonical_user(session, user)
    with session.changing() as connection:
        known_user(connection, user, False, anyway="")
        with admin.change(connection, terms.author, terms.reason, terms.dry_run) as change:
            counters = change.reset_usage(user)
            if counters:
                change.record("quota reset", user, f"counters forgotten: {counters}")
    said = "begins anew in every window" if counters else "has used nothing"
    session.done(
        {"dry_run": terms.dry_run, "user": user, "counters": counters}, f"{terms.prefix}{escape(user)} {said}"
    )


def _must_have(session: Session, user: str, own: list[UserLimit], lifted: list[Limit]) -> None:
    """
    :raises NotFound: a limit that is to be lifted is neither the tier's nor an own one.
    """
    if session.rescued is not None:
        return
    there = {(row.unit, row.window): _text(row) for row in own}
    there |= {(limit.unit, limit.window): str(limit) for limit in session.config.tiers.limits_of(user)}
    for limit in lifted:
        if (limit.unit, limit.window) not in there:
            raise NotFound(
                f"{escape(user)} has no limit of {limit.unit} per {format_duration(limit.window)} that could be lifted; it has "
                f"{', '.join(there.values()) or 'none'} (--force sets it anyway)"
            )


def split_limits(words: Sequence[str]) -> list[str]:
    """The limits on a command line, whether each was quoted or none: every one ends with the word after ``per``."""
    limits: list[list[str]] = [[]]
    for word in " ".join(words).split():
        limits[-1].append(word)
        if len(limits[-1]) > 1 and limits[-1][-2].lower() == "per":
            limits.append([])
    return [" ".join(limit) for limit in limits if limit]


def warn_without_user_quota(session: Session) -> None:
    """Remark that no check of the configuration asks for an account's own limits."""
    if session.rescued is not None:
        return
    quotas = [check for check in session.config.checks if check.use == "quota" and check.mode != "off"]
    if not any(check.options.per == "user" and not check.options.limits for check in quotas):
        session.note(
            f"{session.config_path} has no check 'use = \"quota\"' per user without limits of its own: "
            "an account's own limits have no effect until it has one"
        )


def _unit_and_window(text: str) -> tuple[str, int]:
    from policyd.store.dump import parse_own_limit

    limit = parse_own_limit(f"unlimited {text}" if text.split(maxsplit=1)[0].lower() in UNITS else text)
    return limit.unit, limit.window


def _text(row: UserLimit) -> str:
    from policyd.store.dump import limit_text

    return limit_text(row.unit, row.window, row.amount)
