"""``policyctl queue``: what still waits in Postfix's queue from one login, and holding, releasing or deleting it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from policyd.answer import escape
from policyd.cli.accounts import confirmed
from policyd.cli.common import Session, account_of, json_option, pass_session, table
from policyd.cli.postfix_queue import DELETE, HOLD, RELEASE, Message, Queue
from policyd.cli.when import iso, stamp
from policyd.errors import UserError
from policyd.units import format_size

if TYPE_CHECKING:
    from policyd.request import Site

_WORDS = {HOLD: ("Hold", "held"), RELEASE: ("Release", "released"), DELETE: ("Delete", "deleted")}
#: A decision on a mail is made after its queue file is there; clocks are read one after the other, ms.
_EARLIER = 5_000
#: Queue ids that are looked up among the decisions with one question.
_AT_ONCE = 1_000
#: Octets of an alert on stdin.
LONGEST_ALERT = 1_000_000
ENVELOPE, DECISIONS = "envelope", "decisions"


@click.command()
@click.argument("user")
@click.option("--hold", "option", flag_value=HOLD, help="Put it on hold: it stays, and is not delivered.")
@click.option("--release", "option", flag_value=RELEASE, help="Let what is on hold go.")
@click.option("--delete", "option", flag_value=DELETE, help="Delete it for good; nobody is told.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option(
    "--postfix-config",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False),
    help="The configuration directory of another instance of Postfix.",
)
@json_option
@pass_session
def queue(
    session: Session, user: str, option: str | None, yes: bool, quiet: bool, postfix_config: str | None
) -> None:
    """What still waits in Postfix's queue from the login USER; with an option act on it, as root.

    \b
    policyctl queue alice@example.org
    policyctl queue alice@example.org --hold
    policyctl queue alice@example.org --delete --yes

    Found by the login in each queue file, which only root can read, and by the queue ids of policyd's decisions. Mail that a
    content filter gave back has neither any more.

    '-' in place of USER reads an alert from stdin, as an exec: channel gives it, and acts if it says that a login was suspended:
    'policyctl queue - --hold --yes --quiet' holds what waits of it at once.
    """
    for name in [user] if user != "-" else _suspended_of_alert():
        _one(session, account_of(session, name), option, yes, quiet, postfix_config)


def _one(
    session: Session, account: str, option: str | None, yes: bool, quiet: bool, postfix_config: str | None
) -> None:
    postfix = Queue(postfix_config or "")
    if option is not None and os.geteuid() != 0:
        raise UserError("Postfix lets only root act on its queue; run policyctl as root")
    messages = find(session, postfix, account)
    if option is None:
        _show(session, account, messages, quiet)
        return
    wanted = [each for each in messages if (each.queue == "hold") == (option == RELEASE) or option == DELETE]
    verb, past = _WORDS[option]
    done: list[str] = []
    if wanted:
        if not (quiet or yes):
            click.echo(_table(wanted), err=session.json)
        confirmed(f"{verb} {_so_many(len(wanted))} of {escape(account)}?", yes)
        done = _act(session, postfix, account, option, [each.queue_id for each in wanted])
    if quiet:
        return
    gone = len(wanted) - len(done)
    rest = f"; {gone} went meanwhile" if gone else ""
    session.done(
        {
            "user": account,
            "action": verb.lower(),
            "done": done,
            "messages": [_record(each) for each in wanted],
        },
        f"{escape(account)}: {_so_many(len(done))} {past}{rest}" if wanted else _nothing(account, option),
    )


def _suspended_of_alert() -> list[str]:
    """The logins that the alert on stdin says were suspended; none for any other alert.

    :raises UserError: it is no alert.
    """
    text = sys.stdin.buffer.read(LONGEST_ALERT)
    try:
        data = json.loads(text)["data"]
        if data["kind"] != "suspend":
            return []
        # Several at once are told as one, each with its own subject.
        each = data["facts"].get("events") if not data["subject"] else [data]
        return [str(one["subject"]) for one in each or [] if one["subject"] and not one["resolved"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(
            "stdin holds no alert; '-' is for the JSON that an exec: channel gives to a command"
        ) from None


def find(session: Session, postfix: Queue, account: str) -> list[Message]:
    """The messages of ``account`` that wait, the oldest first."""
    site = session.config.site
    messages = {each.queue_id: each for each in postfix.messages()}
    in_envelope = postfix.logins(messages) if os.geteuid() == 0 else {}
    if os.geteuid() != 0 and messages:
        session.note("only root can read the logins in Postfix's queue files; found by the decisions alone")
    decided = _decided(session, list(messages.values()))
    found = []
    for queue_id, message in messages.items():
        logins = _accounts(site, in_envelope.get(queue_id, []))
        by_decision = decided.get(queue_id, set()) == {account}
        if logins == {account}:
            message.found_by.append(ENVELOPE)
        # The queue file knows best: a login in it that is another's settles it.
        if by_decision and logins <= {account}:
            message.found_by.append(DECISIONS)
        if message.found_by:
            found.append(message)
    return sorted(found, key=lambda message: (message.arrived, message.queue_id))


def _accounts(site: Site, logins: Sequence[str]) -> set[str]:
    return {site.login(login) for login in logins}


def _decided(session: Session, messages: list[Message]) -> dict[str, set[str]]:
    """The accounts of the decisions on each of the messages."""
    from policyd.cli.common import Times
    from policyd.store import read

    found: dict[str, set[str]] = {}
    arrived = {message.queue_id: message.arrived * 1000 - _EARLIER for message in messages}
    if not arrived:
        return found
    with session.reading() as connection:
        since = max(0, min(arrived.values()) - Times.of(connection).ahead)
        ids = list(arrived)
        for at in range(0, len(ids), _AT_ONCE):
            for queue_id, user, wall_at in read.accounts_of_queue_ids(
                connection, ids[at : at + _AT_ONCE], since
            ):
                # A short queue id is used again after delivery.
                if wall_at >= arrived[queue_id]:
                    found.setdefault(queue_id, set()).add(user)
    return found


def _act(session: Session, postfix: Queue, account: str, option: str, queue_ids: list[str]) -> list[str]:
    if option == DELETE:
        # First on hold, where nothing is delivered and no queue id is used again; then what is still this login's there.
        postfix.act(HOLD, queue_ids)
        held = {each.queue_id for each in find(session, postfix, account) if each.queue == "hold"}
        queue_ids = [each for each in queue_ids if each in held]
        if not queue_ids:
            return []
    return postfix.act(option, queue_ids)


def _show(session: Session, account: str, messages: list[Message], quiet: bool) -> None:
    if session.json:
        session.data([_record(each) for each in messages])
    elif messages:
        click.echo(_table(messages))
        name = "mail" if len(messages) == 1 else "mails"
        click.echo(f"{len(messages)} {name}; --hold, --release and --delete act on them")
    elif not quiet:
        click.echo(_nothing(account, None))


def _nothing(account: str, option: str | None) -> str:
    where = "is on hold" if option == RELEASE else "waits in Postfix's queue"
    return f"no mail of {escape(account)} {where}"


def _so_many(number: int) -> str:
    return f"{number} mail{'' if number == 1 else 's'}"


def _table(messages: list[Message]) -> str:
    return table(
        ["queue id", "queue", "arrived", "size", "sender", "to", "found by", "delayed"],
        [
            (
                each.queue_id,
                each.queue,
                stamp(each.arrived * 1000),
                format_size(each.size),
                f"<{each.sender}>",
                each.recipients[0]
                + (f" and {len(each.recipients) - 1} more" if len(each.recipients) > 1 else "")
                if each.recipients
                else "",
                " ".join(each.found_by),
                each.delay[:60],
            )
            for each in messages
        ],
    )


def _record(message: Message) -> dict[str, Any]:
    return {
        "queue_id": message.queue_id,
        "queue": message.queue,
        "arrived": iso(message.arrived * 1000),
        "size": message.size,
        "sender": message.sender,
        "recipients": message.recipients,
        "delay": message.delay or None,
        "found_by": message.found_by,
    }
