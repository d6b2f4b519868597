"""``policyctl pause`` and ``resume``: everything in shadow for some time, when mail must flow while one thinks."""

from __future__ import annotations

import click

from policyd.cli.check import drop_mode, set_mode
from policyd.cli.common import Session, Terms, json_option, pass_session, steering_options
from policyd.opinion import SHADOW
from policyd.steering import EVERY_CHECK


@click.command()
@steering_options(required=True)
@json_option
@pass_session
def pause(session: Session, terms: Terms) -> None:
    """Put every check but bans and allows into shadow: verdicts are recorded, and nothing is refused.

    \b
    policyctl pause --for 1h --reason 'newsletter is stuck'
    """
    set_mode(session, EVERY_CHECK, SHADOW, terms)


@click.command()
@steering_options(lasts=False)
@json_option
@pass_session
def resume(session: Session, terms: Terms) -> None:
    """End a pause now."""
    dropped = drop_mode(session, EVERY_CHECK, terms, "resume")
    said = "the pause is over: every check is in its own mode" if dropped else "nothing was paused"
    session.done({"dry_run": terms.dry_run, "changed": dropped is not None}, f"{terms.prefix}{said}")
