"""``policyctl policy``: the configuration as plain sentences, to be published as the site's acceptable-use page."""

from __future__ import annotations

import re
import textwrap

import click

from policyd.cli.common import Session, json_option, one_line, pass_session
from policyd.errors import PolicydError


@click.command()
@click.option("--markdown", is_flag=True, help="Markdown, for a web page.")
@json_option
@pass_session
def policy(session: Session, markdown: bool) -> None:
    """The policy in plain sentences: the limits, what counts as a violation, what follows.

    Says what holds now: a mode that was set by hand counts more than the file's. It names neither exceptions nor members.
    """
    from policyd.cli.policy_words import policy as worded

    title, sections = worded(session.sound_config, _modes(session))
    if session.json:
        session.data({"title": title, "sections": [section._asdict() for section in sections]})
        return
    click.echo(f"# {_marked(title)}" if markdown else one_line(title))
    for section in sections:
        click.echo(f"\n## {section.title}\n" if markdown else f"\n{section.title}:")
        for sentence in section.sentences:
            text = one_line(sentence)
            click.echo(
                f"- {_marked(text)}"
                if markdown
                else textwrap.fill(text, 100, initial_indent="  - ", subsequent_indent="    ")
            )


def _modes(session: Session) -> dict[str, str]:
    """Modes that were set by hand; none where there is no database yet."""
    from policyd.store.steering_sync import SteeringMirror

    try:
        with session.reading() as connection:
            from policyd.store.clock import ledger_now

            mirror = SteeringMirror(connection)
            mirror.load()
            now = ledger_now(connection)
            modes = mirror.steering.modes.values()
            return {mode.name: mode.mode for mode in modes if not mode.expires_at or now < mode.expires_at}
    except PolicydError as error:
        session.note(f"modes that were set by hand are not known: {error}")
        return {}


def _marked(text: str) -> str:
    """Text of names and numbers, which Markdown is not to take for its own."""
    return re.sub(r"([\\`*_<>#\[\]|])", r"\\\1", text)
