"""``policyctl greylist``: which triplets wait or are known, who is not delayed at all, and forgetting what is remembered."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from policyd.cli import entries
from policyd.cli.common import (
    Session,
    Terms,
    Times,
    json_option,
    pass_session,
    steering_options,
    usage_errors,
)
from policyd.errors import NotFound
from policyd.greylisting import CLIENT, PASSED, WAITING, Triplet, normal_sender, origin_of, parse_triplet
from policyd.match import address_key, parse_network
from policyd.steering import ALLOW_KINDS, Entry, Listing, canonical_value, client_network

if TYPE_CHECKING:
    import sqlite3

    from policyd.store.memory import Remembered

F = TypeVar("F", bound=Callable[..., Any])
#: Triplets that are deleted in one transaction: the daemon writes in between.
STEP = 2_000


class Wanted(NamedTuple):
    """Which triplets are meant; an empty part means any."""

    origin: str = ""
    sender: str = ""
    recipient: str = ""
    waiting: bool = False
    passed: bool = False

    def fits(self, triplet: Triplet) -> bool:
        """Whether ``triplet`` is one of them, as far as its parts tell."""
        return (
            self.origin in ("", triplet.origin)
            and _address_fits(self.sender, triplet.sender)
            and _address_fits(self.recipient, triplet.recipient)
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of facts in which they are found."""
        return (PASSED,) if self.passed else (WAITING,) if self.waiting else (WAITING, PASSED)


def _address_fits(wanted: str, address: str) -> bool:
    return address.endswith(wanted) if wanted.startswith("@") else wanted in ("", address)


def filter_options(command: F) -> F:
    """The filters, handed to the command as ``wanted``."""

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        client: str | None,
        sender: str | None,
        recipient: str | None,
        waiting: bool,
        passed: bool,
        **options: Any,
    ) -> Any:
        with usage_errors():
            if waiting and passed:
                raise ValueError("--waiting and --passed exclude each other")
            wanted = Wanted(
                _origin(client) if client else "",
                _sender(sender) if sender else "",
                _whole(recipient).recipient if recipient else "",
                waiting,
                passed,
            )
        return command(*args, wanted=wanted, **options)

    for name, metavar, text in reversed(
        (
            (
                "--client",
                "ADDRESS|@DOMAIN",
                "Of this client's network; @DOMAIN: of who may send for it by SPF.",
            ),
            ("--sender", "ADDRESS|@DOMAIN", "From this sender, or any of a domain; <>: the null sender."),
            ("--recipient", "ADDRESS|@DOMAIN", "To this recipient, or any of a domain."),
        )
    ):
        wrapped = click.option(name, metavar=metavar, help=text)(wrapped)
    wrapped = click.option("--passed", is_flag=True, help="Only what has passed.")(wrapped)
    return click.option("--waiting", is_flag=True, help="Only what has not passed yet.")(wrapped)  # type: ignore[return-value]


def _origin(text: str) -> str:
    if text.startswith("@"):
        return "@" + canonical_value("domain", text)
    network = origin_of(text.partition("/")[0])
    if not network:
        raise ValueError(
            f"--client {text!r} is no IP address; write 192.0.2.7, or @example.org for an SPF pool"
        )
    return network


def _sender(text: str) -> str:
    if text in ("", "<>"):
        return "<>"
    return _whole(normal_sender(address_key(text)) if not text.startswith("@") else text).recipient


def _whole(text: str) -> Triplet:
    """A triplet whose recipient is ``text`` as it stands in a key."""
    text = "@" + canonical_value("domain", text) if text.startswith("@") else address_key(text)
    return parse_triplet(Triplet("-", "-", text).key)


# --- seeing ----------------------------------------------------------------------------------------------------------


@click.command()
@filter_options
@click.option(
    "-n", "--limit", type=click.IntRange(0), default=50, show_default=True, help="How many; 0: all."
)
@json_option
@pass_session
def list_triplets(session: Session, wanted: Wanted, limit: int) -> None:
    """Show triplets, the newest last: since when each is known, how many mails passed, until when it stays known.

    \b
    policyctl greylist show --client 192.0.2.7
    policyctl greylist show --sender @example.net --waiting

    Senders stand there as they are compared: without tags, # for numbers.
    """
    with session.reading() as connection:
        times = Times.of(connection)
        found = _find(connection, wanted, times.now, limit)
    session.show(
        [
            {
                "client": triplet.origin,
                "sender": triplet.sender,
                "recipient": triplet.recipient,
                "state": "passed" if each.fact.hits else "waiting",
                "mails": each.fact.hits,
                **_instants(times, each),
            }
            for each, triplet in found
        ],
        ("client", "sender", "recipient", "state", "mails", "first", "last", "until"),
        [
            (
                *triplet,
                "passed" if each.fact.hits else "waiting",
                each.fact.hits,
                times.text(each.fact.first_at),
                times.text(each.fact.last_at),
                times.text(each.fact.expires_at),
            )
            for each, triplet in found
        ],
        "no such triplet is known",
    )


def _find(
    connection: sqlite3.Connection, wanted: Wanted, now: int, limit: int
) -> list[tuple[Remembered, Triplet]]:
    """The newest triplets that are wanted and have not expired, the newest last."""
    from policyd.store import memory

    def fits(each: Remembered) -> bool:
        return each.fact.expires_at > now and wanted.fits(parse_triplet(each.key))

    begins = f"{wanted.origin} " if wanted.origin else ""
    found: dict[str, Remembered] = {}
    for kind in wanted.kinds:
        # One that has passed is no longer waiting, whatever is left of the time before.
        found |= {each.key: each for each in memory.newest(connection, kind, begins, fits, limit)}
    rows = sorted(found.values(), key=lambda each: each.fact.last_at)
    return [(each, parse_triplet(each.key)) for each in (rows[-limit:] if limit else rows)]


@click.command()
@click.option(
    "-n", "--limit", type=click.IntRange(0), default=50, show_default=True, help="How many; 0: all."
)
@json_option
@pass_session
def list_clients(session: Session, limit: int) -> None:
    """List clients that passed, the newest last: how often, and which are not delayed any more, for that or by hand."""
    from policyd.store import admin, memory

    enough = [check.options.auto_allow for check in session.config.checks if check.use == "greylist"]
    least = min((number for number in enough if number), default=0)
    with session.reading() as connection:
        times = Times.of(connection)
        found = memory.newest(connection, CLIENT, "", lambda each: each.fact.expires_at > times.now, limit)
        entries = admin.rows(connection, "greylist_allow", times.now)
    found.reverse()

    def delayed(each: Remembered) -> str:
        if _is_spared(each.key, entries):
            return "no, by hand"
        return "no more" if least and each.fact.hits >= least else "yes"

    rows = [(each, delayed(each)) for each in found]
    session.show(
        [
            {
                "client": each.key,
                "successes": each.fact.hits,
                "delayed": said == "yes",
                **_instants(times, each),
            }
            for each, said in rows
        ],
        ("client", "successes", "delayed", "first", "last", "until"),
        [
            (
                each.key,
                each.fact.hits,
                said,
                times.text(each.fact.first_at),
                times.text(each.fact.last_at),
                times.text(each.fact.expires_at),
            )
            for each, said in rows
        ],
        "no client has passed yet",
    )


def _is_spared(origin: str, entries: Sequence[Entry]) -> bool:
    """Whether all of ``origin`` is allowed by hand; a part of a network is not all of it."""
    if origin.startswith("@"):
        listing = Listing()
        for each in entries:
            listing.put(each)
        return listing.domain(origin[1:], 0) is not None
    network = parse_network(origin)
    return any(
        wider is not None and wider.version == network.version and network.subnet_of(wider)  # type: ignore[arg-type]
        for wider in (client_network(each.value) for each in entries if each.kind == "client")
    )


def _instants(times: Times, each: Remembered) -> dict[str, Any]:
    from policyd.store.dump import instant

    fact = each.fact
    return {
        "first": instant(fact.first_at, times.ahead),
        "last": instant(fact.last_at, times.ahead),
        "expires": instant(fact.expires_at, times.ahead),
    }


# --- forgetting ------------------------------------------------------------------------------------------------------


@click.command()
@filter_options
@click.option("--all", "everything", is_flag=True, help="All triplets and clients.")
@steering_options(lasts=False)
@json_option
@pass_session
def forget(session: Session, wanted: Wanted, everything: bool, terms: Terms) -> None:
    """Forget triplets, and with --client or --all what these clients have proved: they are strangers again.

    \b
    policyctl greylist forget --client 192.0.2.7
    policyctl greylist forget --sender news@example.net --recipient alice@example.org
    """
    if everything == (wanted != Wanted()):
        raise click.UsageError(
            "say what to forget: --client, --sender, --recipient, --waiting, --passed; or --all"
        )
    clients = everything or (bool(wanted.origin) and wanted == Wanted(wanted.origin))
    with session.changing() as connection:
        kinds = (*wanted.kinds, *((CLIENT,) if clients else ()))
        keys = {kind: _keys(connection, kind, wanted) for kind in kinds}
        triplets = len({key for kind in wanted.kinds for key in keys[kind]})
        proved = len(keys.get(CLIENT, ()))
        if not triplets and not proved:
            raise NotFound("no such triplet is known; 'policyctl greylist list' shows what is")
        said = _number(triplets, "triplet") + (f", {_number(proved, 'client')}" if clients else "")
        if not terms.dry_run:
            _delete(connection, keys, terms, _described(wanted), said)
    session.done(
        {"dry_run": terms.dry_run, "triplets": triplets, "clients": proved},
        f"{terms.prefix}forgotten: {said}",
    )


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _keys(connection: sqlite3.Connection, kind: str, wanted: Wanted) -> list[str]:
    from policyd.store import memory

    if kind == CLIENT:
        return [
            each.key
            for each in memory.facts(connection, kind, wanted.origin)
            if wanted.origin in ("", each.key)
        ]
    begins = f"{wanted.origin} " if wanted.origin else ""
    return [
        each.key for each in memory.facts(connection, kind, begins) if wanted.fits(parse_triplet(each.key))
    ]


def _delete(
    connection: sqlite3.Connection, keys: dict[str, list[str]], terms: Terms, subject: str, said: str
) -> None:
    """Delete in short transactions, the first of which has the row of history."""
    from policyd.store import admin, memory

    told = False
    for kind, all_keys in keys.items():
        for at in range(0, len(all_keys), STEP):
            with admin.change(connection, terms.author, terms.reason) as change:
                memory.delete(connection, kind, all_keys[at : at + STEP])
                if not told:
                    change.record("greylist forget", subject, said)
                told = True


def _described(wanted: Wanted) -> str:
    parts: Sequence[str] = [str(part) for part in wanted[:3] if part]
    return " ".join(parts) or ("waiting" if wanted.waiting else "passed" if wanted.passed else "all")


# --- who is not delayed ----------------------------------------------------------------------------------------------


@click.command()
@entries.kind_argument(ALLOW_KINDS)
@entries.values_argument
@steering_options()
@json_option
@pass_session
def allow(session: Session, kind: str, values: tuple[str, ...], terms: Terms) -> None:
    """Do not delay mail of VALUE; all other checks go on to look at it.

    \b
    policyctl greylist allow client 192.0.2.0/24 --reason 'sends from a pool'
    policyctl greylist allow domain example.net
    policyctl greylist allow recipient support@example.org

    Without --for or --until it holds until 'policyctl greylist unallow KIND VALUE'. '-' reads a list from stdin.
    """
    entries.add(session, "greylist_allow", kind, values, terms, lambda connection, value: None)
    entries.warn_without(session, "greylist", "greylist_allow")


@click.command()
@entries.kind_argument(ALLOW_KINDS)
@entries.values_argument
@steering_options(lasts=False)
@json_option
@pass_session
def unallow(session: Session, kind: str, values: tuple[str, ...], terms: Terms) -> None:
    """Delay strangers among VALUE again; '-' reads a list from stdin."""
    entries.remove(session, "greylist_allow", kind, values, terms)


@click.command()
@entries.kind_argument(ALLOW_KINDS, required=False)
@json_option
@pass_session
def allows(session: Session, kind: str | None) -> None:
    """List who is not delayed by hand, of one kind or all."""
    entries.listing(session, "greylist_allow", kind)
