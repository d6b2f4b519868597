"""``policyctl config``: is the file right, and what is in force when everything that it leaves out is filled in."""

from __future__ import annotations

import click

from policyd.answer import escape
from policyd.cli.common import Session, json_option, pass_session


@click.command()
@click.argument("file", required=False, type=click.Path())
@json_option
@pass_session
def check(session: Session, file: str | None) -> None:
    """Every problem of the file (default: that of --config), with its place; exit code 1 when there is one.

    What is no error and most likely not meant is a warning, and so is a directory that is missing.
    """
    from policyd.config import doubts, missing_places
    from policyd.service import build_engine

    chosen = Session(file, session.json) if file else session
    config = chosen.sound_config
    engine = build_engine(config)
    lines = [
        f"{escape(config.path, 1000)}: right; policy {config.policy_version}, {len(engine.rules)} checks"
    ]
    if not engine.rules:
        lines.append("note: there is no [[check]], so everything passes")
    warnings = [*doubts(config), *missing_places(config)]
    for warning in warnings:
        session.warn(warning)
    session.done(
        {
            "file": config.path,
            "policy": config.policy_version,
            "checks": [rule.name for rule in engine.rules],
            "warnings": warnings,
        },
        *lines,
    )


@click.command()
@json_option
@pass_session
def show(session: Session) -> None:
    """What is in force, defaults included, as a file that means the same."""
    from policyd.config import show as written

    text = written(session.sound_config)
    if session.json:
        import tomllib

        session.data(tomllib.loads(text))
    else:
        # TOML escapes what is not printable by itself, and a copy of the output has to be the same file.
        click.echo(
            "".join(ch if ch.isprintable() or ch == "\n" else f"\\u{ord(ch):04x}" for ch in text), nl=False
        )
