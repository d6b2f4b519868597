"""``policyctl tier``: the tiers of the configuration."""

from __future__ import annotations

import click

from policyd.answer import escape
from policyd.cli.common import Session, did_you_mean, json_option, pass_session
from policyd.errors import NotFound
from policyd.tiers import Tier


@click.command()
@json_option
@pass_session
def list_tiers(session: Session) -> None:
    """List the tiers and their limits."""
    tiers = session.sound_config.tiers
    session.show(
        [_record(tier, tiers.default) for tier in tiers.all.values()],
        ("tier", "default", "members", "limits"),
        [
            (tier.name, "yes" if tier.name == tiers.default else "", len(tier.members), _limits(tier))
            for tier in tiers.all.values()
        ],
        f"{session.config_path} has no tiers",
    )


@click.command()
@click.argument("name")
@json_option
@pass_session
def show_tier(session: Session, name: str) -> None:
    """Show the tier NAME: its limits and members."""
    tiers = session.sound_config.tiers
    tier = tiers.all.get(name)
    if tier is None:
        near = did_you_mean(name, tiers.all)
        raise NotFound(
            f"{session.config_path} has no tier {escape(name)!r}{near or '; policyctl tier list shows them'}"
        )
    lines = [f"tier     {escape(tier.name)}{' (the default)' if name == tiers.default else ''}"]
    lines += [f"limit    {limit}" for limit in tier.limits] or ["limit    none"]
    lines += [f"member   {escape(member)}" for member in sorted(tier.members)]
    session.done(_record(tier, tiers.default), *lines)


def _limits(tier: Tier) -> str:
    return ", ".join(map(str, tier.limits)) or "none"


def _record(tier: Tier, default: str) -> dict[str, object]:
    return {
        "tier": tier.name,
        "default": tier.name == default,
        "limits": [str(limit) for limit in tier.limits],
        "members": sorted(tier.members),
    }
