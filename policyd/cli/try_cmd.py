"""``policyctl try``: decides one request here, against what the database holds now; nothing is counted or written."""

from __future__ import annotations

import click

from policyd.cli.ask import attributes_of, doubts
from policyd.cli.common import Session, json_option, pass_session


@click.command("try")
@click.argument("request", metavar="FILE | KEY=VALUE...", nargs=-1, required=True)
@click.option(
    "--listener", metavar="LABEL", default="", help="As if asked on this listener; default: the first one."
)
@json_option
@pass_session
def try_(session: Session, request: tuple[str, ...], listener: str) -> None:
    """Decide one request as the daemon would now; nothing is counted, and no reference is given out.

    Takes what 'policyctl ask' takes. The policy is that of the file, which the daemon may not have read yet. Blocklists
    and SPF are asked anew, at the nameservers of [dns]; which lists the daemon holds to be sick is not known here.
    """
    from policyd.cli.decisions import record
    from policyd.cli.explain import describe
    from policyd.cli.offline import Offline, logged

    attributes = attributes_of(request)
    for doubt in doubts(attributes):
        session.warn(doubt)
    config = session.sound_config
    chosen = next(
        (known for known in config.server.listen if listener in ("", known.label, known.address)), None
    )
    if chosen is None:
        labels = ", ".join(known.label for known in config.server.listen)
        raise click.UsageError(
            f"there is no listener {listener!r}; there is {labels}", click.get_current_context()
        )
    asked = config.site.request(attributes, chosen.label, chosen.direction)
    with session.reading() as connection:
        row = logged(Offline(config, connection).decide(asked))
    if session.json:
        session.data(record(row))
        return
    for text_line in describe(row, config.policy_version, only_tried=True):
        click.echo(text_line)
    click.echo("\nnothing was counted or written down")
