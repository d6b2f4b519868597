"""``policyctl doctor``: what is wrong with the running whole, why it matters, and the command that mends it."""

from __future__ import annotations

from typing import Any

import click

from policyd.cli.common import Session, json_option, one_line, pass_session
from policyd.cli.postfix import postfix_option

_COLORS = {"critical": "red", "warning": "yellow", "unknown": "magenta"}


@click.command()
@postfix_option
@click.option(
    "--ignore",
    "ignored",
    metavar="NAME",
    multiple=True,
    help="Say nothing of the finding NAME; may be repeated.",
)
@click.option("--brief", is_flag=True, help="The first line alone.")
@json_option
@pass_session
def doctor(session: Session, instance: str, ignored: tuple[str, ...], brief: bool) -> int:
    """What is wrong, why it matters, and what mends it; one line when all is well.

    Looks at Postfix, policyd, the nameservers, the clock, the disks, the database and the mail log. Changes nothing. Exit
    codes are those of monitoring plug-ins: 0 sound, 1 warning, 2 critical, 3 unknown.
    """
    from policyd.doctor.gather import gather
    from policyd.doctor.judge import exit_code, judge, summary

    findings = judge(gather(session, instance), ignored)
    if session.json:
        record: dict[str, Any] = {
            "summary": summary(findings),
            "exit_code": exit_code(findings),
            "findings": [vars(finding) for finding in findings],
        }
        session.data(record)
        return exit_code(findings)
    click.echo(one_line(summary(findings)))
    for finding in findings if not brief else ():
        level = click.style(finding.level.upper(), fg=_COLORS[finding.level], bold=True)
        click.echo(f"\n{level} {finding.name}: {one_line(finding.what)}")
        click.echo(f"  why   {one_line(finding.why)}")
        click.echo(f"  mend  {one_line(finding.mend)}")
    return exit_code(findings)
