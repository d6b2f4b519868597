"""``policyctl allow``, ``unallow``, ``allows``: who passes without further checks."""

from __future__ import annotations

import click

from policyd.cli import entries
from policyd.cli.common import Session, Terms, json_option, pass_session, steering_options
from policyd.steering import ALLOW_KINDS


@click.command()
@entries.kind_argument(ALLOW_KINDS)
@entries.values_argument
@steering_options()
@json_option
@pass_session
def add_allow(session: Session, kind: str, values: tuple[str, ...], terms: Terms) -> None:
    """Let VALUE pass without the checks that come after 'allow' in the configuration.

    \b
    policyctl allow client 192.0.2.25 --for 7d --reason 'new relay of example.net'
    policyctl allow sender news@example.net
    policyctl allow domain example.net       the domain and all below it
    policyctl allow recipient abuse@example.org

    Without --for or --until it holds until 'policyctl unallow KIND VALUE'. '-' reads a list from stdin.
    Also: allow list, allow show KIND VALUE, allow rm KIND VALUE.
    """
    entries.add(session, "allow", kind, values, terms, lambda connection, value: None)
    entries.warn_without(session, "allow", "allow")


@click.command()
@entries.kind_argument(ALLOW_KINDS)
@entries.values_argument
@steering_options(lasts=False)
@json_option
@pass_session
def remove_allow(session: Session, kind: str, values: tuple[str, ...], terms: Terms) -> None:
    """Take the allow of VALUE back; '-' reads a list from stdin."""
    entries.remove(session, "allow", kind, values, terms)


@click.command()
@entries.kind_argument(ALLOW_KINDS, required=False)
@json_option
@pass_session
def list_allows(session: Session, kind: str | None) -> None:
    """List the allows in force that were set by hand, of one kind or all."""
    entries.listing(session, "allow", kind)


@click.command()
@entries.kind_argument(ALLOW_KINDS)
@entries.values_argument
@json_option
@pass_session
def show_allow(session: Session, kind: str, values: tuple[str, ...]) -> None:
    """Show the allow of VALUE."""
    entries.listing(session, "allow", kind, values)
