"""``policyctl check``: which checks and detectors run and in which mode, without editing files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from policyd.answer import escape
from policyd.cli.common import (
    Session,
    Terms,
    Times,
    did_you_mean,
    json_option,
    pass_session,
    steering_options,
)
from policyd.errors import NotFound
from policyd.opinion import ENFORCE, OFF, SHADOW
from policyd.request import SUBMISSION
from policyd.steering import EVERY_CHECK, CheckMode

if TYPE_CHECKING:
    from policyd.config import CheckSection
    from policyd.config.sections import DetectSection


@click.command()
@json_option
@pass_session
def list_checks(session: Session) -> None:
    """List the checks and detectors in the order in which they run, with the mode that is in force and why."""
    _show(session, check_names(session))


@click.command()
@click.argument("name")
@json_option
@pass_session
def show_check(session: Session, name: str) -> None:
    """Show the check or detector NAME and its mode."""
    _show(session, [_known(session, name)])


@click.command()
@click.argument("name")
@steering_options()
@json_option
@pass_session
def enforce(session: Session, name: str, terms: Terms) -> None:
    """Let the verdict of the check or detector NAME hold, whatever the file says.

    Without --for or --until it stays so until 'policyctl check auto NAME'.
    """
    set_mode(session, _known(session, name), ENFORCE, terms)


@click.command()
@click.argument("name")
@steering_options()
@json_option
@pass_session
def shadow(session: Session, name: str, terms: Terms) -> None:
    """Let the check or detector NAME only record what it would have done."""
    set_mode(session, _known(session, name), SHADOW, terms)


@click.command()
@click.argument("name")
@steering_options()
@json_option
@pass_session
def off(session: Session, name: str, terms: Terms) -> None:
    """Do not ask the check or detector NAME at all."""
    set_mode(session, _known(session, name), OFF, terms)


@click.command()
@click.argument("name")
@steering_options(lasts=False)
@json_option
@pass_session
def auto(session: Session, name: str, terms: Terms) -> None:
    """Give the check or detector NAME the mode of the configuration again."""
    # A mode may have been set for a check that is no longer in the file.
    modes = {section.name: section.mode for section in session.config.checks}
    modes |= {detect.section.name: detect.section.mode for detect in session.config.detects}
    configured = f" ({modes[name]})" if name in modes else ""
    dropped = drop_mode(session, name, terms, "check auto")
    if dropped is None and not configured:
        _known(session, name)
    said = "is back in its configured mode" if dropped else "was in its configured mode already"
    session.done(
        {"dry_run": terms.dry_run, "name": name, "changed": dropped is not None},
        f"{terms.prefix}{escape(name)} {said}{configured}",
    )


def set_mode(
    session: Session, name: str, mode: str, terms: Terms, action: str = "", spoken: str = ""
) -> None:
    """Set the mode of a check, or of all of them, over the configured one.

    :param action: what the history calls it, if it is not a check that is meant.
    :param spoken: what ``name`` is called then.
    """
    from policyd.store import admin, dump

    every = name == EVERY_CHECK
    with (
        session.changing() as connection,
        admin.change(connection, terms.author, terms.reason, terms.dry_run) as change,
    ):
        times, expires = Times.of(connection), change.expires(terms.lasts)
        row = CheckMode(name, mode, terms.reason, terms.author, change.now, expires)
        change.put("check_mode", row)
        until = f"until {times.until(expires)}"
        change.record("pause" if every else action or f"check {mode}", name, until)
    said = (
        f"all checks but bans and allows are in shadow, {until}"
        if every
        else f"{escape(spoken or name)} is in {mode}, {until}"
    )
    if mode == OFF:
        said = f"{escape(spoken or name)} is off, {until}"
    session.done(
        {"dry_run": terms.dry_run, "set": [dump.record("check_mode", row, times.ahead)]},
        f"{terms.prefix}{said}",
    )


def drop_mode(session: Session, name: str, terms: Terms, action: str) -> CheckMode | None:
    """Take a mode that was set by hand back; what it was, or ``None`` when there was none."""
    from policyd.store import admin

    with (
        session.changing() as connection,
        admin.change(connection, terms.author, terms.reason, terms.dry_run) as change,
    ):
        row: CheckMode | None = change.drop("check_mode", name)
        if row is not None:
            change.record(action, name, f"was {row.mode}")
    return row


def check_names(session: Session) -> list[str]:
    """The names of the checks and detectors in the file, also of those that have errors: the daemon may still run them."""
    left_out = session.rescued.left_out if session.rescued is not None else ()
    config = session.config
    return [
        *(section.name for section in config.checks),
        *(d.section.name for d in config.detects),
        *left_out,
    ]


def _known(session: Session, name: str) -> str:
    """``name``, which must be that of a check or detector."""
    if name in check_names(session):
        return name
    raise of_no_check(session, name)


def of_no_check(session: Session, name: str, words: Iterable[str] = ()) -> NotFound:
    """What is said of a name that is none; ``words``: what else could be meant."""
    names = list(dict.fromkeys([*check_names(session), *words]))
    near = did_you_mean(name, names) or f"; it has {', '.join(escape(name) for name in names)}"
    return NotFound(f"{session.config_path} has no check or detector {escape(name)!r}{near}")


def _show(session: Session, names: Sequence[str]) -> None:
    from policyd.store import admin, dump

    with session.reading() as connection:
        times = Times.of(connection)
        set_by_hand = {row.name: row for row in admin.rows(connection, "check_mode", times.now)}
    found: list[tuple[str, str, str, str, tuple[str, CheckMode | None]]] = [
        (check.name, check.use, check.direction, check.mode, in_force(check, set_by_hand))
        for check in session.config.checks
        if check.name in names
    ]
    found += [
        (section.name, "detect", SUBMISSION, section.mode, mode_of_detector(section, set_by_hand))
        for section, _ in session.config.detects
        if section.name in names
    ]
    records, rows = [], []
    for name, use, direction, configured, (mode, row) in found:
        why = ""
        if row is not None:
            action = "paused" if row.name == EVERY_CHECK else "set"
            why = f"{action} by {row.author} until {times.until(row.expires_at)}"
            why += f": {row.reason}" if row.reason else ""
        records.append(
            {
                "name": name,
                "use": use,
                "for": direction,
                "configured": configured,
                "mode": mode,
                "by_hand": dump.record("check_mode", row, times.ahead) if row is not None else None,
            }
        )
        rows.append((name, use, direction, mode, configured, why))
    session.show(
        records,
        ("name", "use", "for", "mode", "configured", "why"),
        rows,
        "there is no such check, or it cannot be read",
    )


def mode_of_detector(
    section: DetectSection, set_by_hand: dict[str, CheckMode]
) -> tuple[str, CheckMode | None]:
    """The mode a detector is in, and the row that makes it differ from the configured one, if any does."""
    own, every = set_by_hand.get(section.name), set_by_hand.get(EVERY_CHECK)
    mode = own.mode if own is not None else section.mode
    return (SHADOW, every) if every is not None and mode == ENFORCE else (mode, own)


def in_force(section: CheckSection, set_by_hand: dict[str, CheckMode]) -> tuple[str, CheckMode | None]:
    """The mode a check is in, and the row that makes it differ from the configured one, if any does."""
    from policyd import checks
    from policyd.engine import Rule, effective_mode
    from policyd.steering import Steering

    steering = Steering()
    for row in set_by_hand.values():
        steering.put("check_mode", row._replace(expires_at=0))
    check: Any = checks.load(section.use)[1]
    rule = Rule(section.name, section.use, section.direction, section.mode, section.on_error, check)
    own, every = set_by_hand.get(section.name), set_by_hand.get(EVERY_CHECK)
    mode = effective_mode(rule, every.mode if every else "", steering, 0)
    if every is not None and mode != effective_mode(rule, "", steering, 0):
        return mode, every
    return mode, own
