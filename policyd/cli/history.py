"""``policyctl history``: who changed what by hand, when and why."""

from __future__ import annotations

import click

from policyd.cli.common import Session, json_option, pass_session
from policyd.cli.when import iso, stamp


@click.command()
@click.argument("subject", required=False)
@click.option(
    "-n", "--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="At most so many."
)
@json_option
@pass_session
def history(session: Session, subject: str | None, limit: int) -> None:
    """List the newest changes by hand, about SUBJECT (an account, a value, a check) or all."""
    from policyd.match import fold
    from policyd.store import admin

    wanted = fold(subject.strip()) if subject else ""
    with session.reading() as connection:
        rows = admin.history(connection, wanted, limit)
        if not rows and wanted and (login := session.config.site.login(wanted)) != wanted:
            rows = admin.history(connection, login, limit)
    session.show(
        [
            {
                "time": iso(wall_at),
                "author": author,
                "action": action,
                "subject": about,
                "detail": detail,
                "reason": reason,
            }
            for wall_at, author, action, about, detail, reason in rows
        ],
        ("time", "author", "action", "subject", "detail", "reason"),
        [(stamp(wall_at), *rest) for wall_at, *rest in rows],
        "nothing was changed by hand",
    )
