"""``policyctl user verify|tier|note``: what the admin says of an account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from policyd.accounts import BY_HAND
from policyd.answer import escape, shell_word
from policyd.cli.accounts import reason_of_tier, spoken_reason, tier_named
from policyd.cli.common import (
    Session,
    Terms,
    Times,
    canonical_user,
    json_option,
    known_user,
    pass_session,
    printable,
    steering_options,
    usage_errors,
    values_of,
)

if TYPE_CHECKING:
    from policyd.store.admin import Change

#: The tier of ``user verify``, unless another one is named.
VERIFIED = "verified"
#: In place of a tier's name: as the configuration, learning and promotion say.
AUTO = "auto"


@click.command()
@click.argument("users", nargs=-1, required=True, metavar="USER...")
@click.option(
    "--tier", metavar="TIER", default=VERIFIED, show_default=True, help="Its name in the configuration."
)
@click.option("--force", is_flag=True, help="Also logins that were never seen.")
@steering_options(lasts=False)
@json_option
@pass_session
def verify(session: Session, users: tuple[str, ...], tier: str, force: bool, terms: Terms) -> None:
    """Put accounts into the tier 'verified': you know who has them. '-' reads a list from stdin.

    It stays so until 'policyctl user tier USER auto'; only a suspension puts an account back for 48 hours.
    """
    helps = "; --tier names the one for accounts that you know" if tier == VERIFIED else ""
    _put(session, "user verify", users, tier_named(session, tier, helps), force, terms)


@click.command()
@click.argument("user")
@click.argument("tier")
@click.option("--force", is_flag=True, help="Also a login that was never seen.")
@steering_options(lasts=False)
@json_option
@pass_session
def set_tier(session: Session, user: str, tier: str, force: bool, terms: Terms) -> None:
    """Put an account into TIER by hand, over what the configuration and promotion say; 'auto' takes that back.

    \b
    policyctl user tier shop@example.org bulk --reason 'order confirmations'
    policyctl user tier shop@example.org auto
    """
    tiers = session.sound_config.tiers
    wanted = "" if tier == AUTO and AUTO not in tiers.all else tier_named(session, tier, ", or auto")
    _put(session, "user tier", (user,), wanted, force, terms)


def _put(
    session: Session, action: str, arguments: tuple[str, ...], tier: str, force: bool, terms: Terms
) -> None:
    """Put each account into ``tier`` by hand, or with an empty one back to where it were by itself; all or none."""
    from policyd.cli.import_journal import take_back_unfinished
    from policyd.store import account_rows, admin

    take_back_unfinished(session)
    users = list(dict.fromkeys(canonical_user(session, user) for user in values_of(arguments)))
    tiers = session.sound_config.tiers
    records, lines = [], []
    with session.changing() as connection:
        for user in users:
            known_user(connection, user, force)
        with admin.change(connection, terms.author, terms.reason, terms.dry_run) as change:
            times = Times.of(connection)
            for user in users:
                before = account_rows.account_of(connection, user)
                was = before.tier_of(tiers, change.now)
                account_rows.put_into_tier(change, user, tier, BY_HAND if tier else "")
                after = account_rows.account_of(connection, user)
                now_in, why = after.tier_of(tiers, change.now), reason_of_tier(after, tiers, change.now)
                change.record(action, user, f"tier {tier or AUTO} (before: {was or 'none'})")
                text = f"{terms.prefix}{escape(user)}: tier {escape(now_in) or 'none'}, {spoken_reason(why)}"
                if why == "probation":
                    until = times.until(after.probation_until)
                    text += f", until {until}; then {escape(tier) or 'what holds by itself'}"
                elif was != now_in:
                    text += f" (before: {escape(was) or 'none'})"
                records.append(
                    {
                        "user": user,
                        "tier": now_in or None,
                        "by": why,
                        "before": was or None,
                        "set": tier or None,
                    }
                )
                lines.append(text)
    session.done({"dry_run": terms.dry_run, "set": records}, *lines)


@click.command()
@click.argument("user")
@click.argument("text", nargs=-1, metavar="[TEXT...]")
@click.option("--clear", is_flag=True, help="Take the note away.")
@click.option("--force", is_flag=True, help="Also for a login that was never seen.")
@steering_options(lasts=False)
@json_option
@pass_session
def note(session: Session, user: str, text: tuple[str, ...], clear: bool, force: bool, terms: Terms) -> None:
    """Keep a note about an account, in place of the one before; without TEXT show it.

    \b
    policyctl user note alice@example.org 'called back on the number in the contract, 2026-11-28'
    """
    from policyd.cli.import_journal import take_back_unfinished

    take_back_unfinished(session)
    user = canonical_user(session, user)
    with usage_errors():
        wanted = printable(" ".join(text), "note")
        if clear and wanted:
            raise ValueError("--clear and a text exclude each other")
    if not wanted and not clear:
        _show_note(session, user, force)
        return
    from policyd.store import account_rows, admin

    with session.changing() as connection:
        known_user(connection, user, force)
        with admin.change(connection, terms.author, terms.reason, terms.dry_run) as change:
            known = account_rows.find(connection, user)
            before = known.note if known is not None else ""
            _write_note(change, user, wanted, before)
    was = f" (before: {escape(before, 500)})" if before else ""
    said = f"noted: {escape(wanted, 500)}" if wanted else "no note any more"
    session.done(
        {"dry_run": terms.dry_run, "user": user, "note": wanted, "before": before},
        f"{terms.prefix}{escape(user)}: {said}{was}",
    )


def _write_note(change: Change, user: str, note: str, before: str) -> None:
    from policyd.store import account_rows

    account_rows.update(change, user, {"note": note})
    change.record("user note", user, (note or "taken away") + (f" (before: {before})" if before else ""))


def _show_note(session: Session, user: str, force: bool) -> None:
    from policyd.store import account_rows

    with session.reading() as connection:
        known_user(connection, user, force, "")
        known = account_rows.find(connection, user)
    text = known.note if known is not None else ""
    shown = escape(text, 500) or f"no note; 'policyctl user note {shell_word(user)} TEXT' makes one"
    session.done({"user": user, "note": text}, shown)
