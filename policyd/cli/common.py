"""What the commands share: the session, options that mean the same everywhere, and output for people and programs."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pwd
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from policyd.answer import escape
from policyd.errors import ConfigError, NotFound, PolicydError
from policyd.match import fold

if TYPE_CHECKING:
    import sqlite3

    from policyd.config import Config, Rescued

F = TypeVar("F", bound=Callable[..., Any])

#: postconf(5) check_policy_service: default_action, or smtpd_policy_service_default_action.
NOT_RUNNING = "policyd does not run: Postfix answers what default_action of its check_policy_service says, 451 without one"
UNKNOWN_RUNNING = "whether policyd runs is unknown; run policyctl as root"


class Unreachable(PolicydError):
    """The daemon does not answer; exit code 4."""


@dataclass
class Session:
    """One run of policyctl: which configuration, which database, which kind of output."""

    config_path: str
    json: bool = False

    @functools.cached_property
    def sound_config(self) -> Config:
        """The configuration, for what must not go by half of it.

        :raises ConfigError: it cannot be read, or has errors.
        """
        from policyd.checks import options_of
        from policyd.config import load

        return load(self.config_path, options_of)

    @functools.cached_property
    def rescued(self) -> Rescued | None:
        """What a configuration with errors still says; ``None`` when it has none. The errors are told, once.

        :raises ConfigError: it does not even say where the database is.
        """
        try:
            self.sound_config  # noqa: B018, kept when it can be read
        except ConfigError as error:
            from policyd.checks import options_of
            from policyd.config import rescue

            try:
                rescued = rescue(self.config_path, options_of)
            except ConfigError:
                raise error from None
            self.warn(_told(rescued))
            return rescued
        return None

    @property
    def config(self) -> Config:
        """The configuration; of one with errors what can be read of it, after a warning.

        :raises ConfigError: it does not even say where the database is.
        """
        return self.sound_config if self.rescued is None else self.rescued.config

    @property
    def database(self) -> str:
        """The path of the database."""
        return self.config.store.path

    @contextlib.contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """The database, for one short change.

        :raises StoreError: there is none, or it is not ours to change.
        """
        from policyd.store.connect import open_for_admin

        with open_for_admin(self.database) as connection:
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The database, to read.

        :raises StoreError: there is none, or it cannot be read.
        """
        from policyd.store.connect import open_for_reading

        with open_for_reading(self.database) as connection:
            yield connection

    def show(
        self,
        records: Sequence[Mapping[str, Any]],
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        empty: str,
    ) -> None:
        """Print a list: ``records`` as JSON for programs, else ``rows`` as a table, or the line ``empty``."""
        if self.json:
            self.data(records)
        else:
            rows = list(rows)
            click.echo(table(columns, rows) if rows else empty)

    def data(self, value: object) -> None:
        """Print ``value`` as JSON, ASCII only, whatever the output is."""
        click.echo(json.dumps(value, indent=2))

    def done(self, record: Mapping[str, Any], *lines: str) -> None:
        """Say what a command did: ``record`` as JSON, or ``lines``; nothing in them may be unescaped text from outside."""
        if self.json:
            self.data(record)
        else:
            for line in lines:
                click.echo(line)

    def note(self, text: str) -> None:
        """A remark beside the output, on stderr."""
        click.echo(click.style(f"note: {one_line(text)}", fg="yellow"), err=True)

    def warn(self, text: str) -> None:
        """What the admin must see before the output counts, on stderr."""
        click.echo(click.style(f"warning: {one_line(text)}", fg="yellow"), err=True)


def _told(rescued: Rescued) -> str:
    """One line about a configuration with errors."""
    first, *more = rescued.problems
    others = f" (and {len(more)} more problem{'s' if len(more) > 1 else ''})" if more else ""
    names = [f"check {name}" for name in rescued.left_out]
    if not rescued.knows_checks:
        names.append("what else cannot be read" if names else "the rest")
    without = f", without {', '.join(names)}" if names else ""
    return f"{first}{others}; going on by what can be read{without}. 'policyctl config check' tells all"


pass_session = click.make_pass_decorator(Session)


# --- output ----------------------------------------------------------------------------------------------------------


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """``rows`` under ``columns``, escaped, numbers to the right; a bold head on a terminal."""
    columns = [escape(name) for name in columns]
    numeric = [True] * len(columns)
    cells = []
    for row in rows:
        cells.append([escape(str(value)) for value in row])
        for at, value in enumerate(row):
            numeric[at] = numeric[at] and isinstance(value, int)
    widths = [max([len(name), *(len(row[at]) for row in cells)]) for at, name in enumerate(columns)]
    lines = []
    for row in [list(columns), *cells]:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    lines[0] = click.style(lines[0], bold=True)
    return "\n".join(lines)


def one_line(text: str) -> str:
    """``text`` without line breaks and control characters, of any length."""
    text = " ".join(text.split("\n"))
    if text.isprintable():
        return text
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode("ascii") for ch in text)


def did_you_mean(name: str, candidates: Iterable[str], likeness: float = 0.6) -> str:
    """``; did you mean X?`` for the one of ``candidates`` that is most like ``name`` (0 to 1), or nothing."""
    import difflib

    near = difflib.get_close_matches(name, list(candidates), n=1, cutoff=likeness)
    return f"; did you mean {escape(near[0])}?" if near else ""


class Times(NamedTuple):
    """Ledger time as wall time, for display."""

    #: Ledger time now, ms.
    now: int
    #: How far the wall clock is ahead of ledger time, ms.
    ahead: int

    @classmethod
    def of(cls, connection: sqlite3.Connection) -> Times:
        """The times of this database."""
        from policyd.store.clock import now_and_ahead

        return cls(*now_and_ahead(connection))

    def text(self, ledger: int) -> str:
        """When something happened, for people; empty for 0."""
        from policyd.cli.when import stamp

        return stamp(ledger + self.ahead) if ledger else ""

    def until(self, expires_at: int) -> str:
        """When something ends, for people: never too early."""
        from policyd.cli.when import ending

        return ending(expires_at + self.ahead) if expires_at else "taken back"

    def iso(self, ledger: int) -> str | None:
        """A moment for programs; ``None`` for 0."""
        from policyd.cli.when import iso

        return iso(ledger + self.ahead) if ledger else None


# --- input -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def usage_errors(param: str = "") -> Iterator[None]:
    """A :class:`ValueError` inside is a wrong argument: exit code 2, with its text."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(
            f"{param}: {error}" if param else str(error), click.get_current_context()
        ) from None


def values_of(arguments: Sequence[str]) -> list[str]:
    """The values of a command line, each once; ``-`` stands for the lines of stdin, without empty ones and ``#`` comments."""
    values: list[str] = []
    for argument in arguments:
        if argument == "-":
            text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
            lines = (line.partition(" #")[0].strip() for line in text.splitlines())
            values += [line for line in lines if line and not line.startswith("#")]
        else:
            values.append(argument)
    if not values:
        raise click.UsageError("stdin holds no value", click.get_current_context())
    return list(dict.fromkeys(values))


def author() -> str:
    """Who types: the caller of sudo, else the login of this terminal, else the user of this process."""
    name = os.environ.get("SUDO_USER", "").strip()
    if not name:
        try:
            name = os.getlogin()
        except OSError:
            try:
                name = pwd.getpwuid(os.getuid()).pw_name
            except KeyError:
                name = f"uid {os.getuid()}"
    return escape(name, 64)


def printable(text: str, what: str, longest: int = 500) -> str:
    """``text`` as it may be stored; :class:`ValueError` when it is not one printable line."""
    text = text.strip()
    if not text.isprintable():
        raise ValueError(f"the {what} must be one printable line")
    if len(text) > longest:
        raise ValueError(f"the {what} is longer than {longest} characters")
    return text


class Terms(NamedTuple):
    """How a change is made: by whom, why, for how long, and whether for real."""

    author: str
    reason: str
    #: ``--for``, ms; 0 when not given.
    duration: int
    #: ``--until``, wall time in ms; 0 when not given.
    until: int
    dry_run: bool

    @property
    def lasts(self) -> int:
        """For how many ms from now, 0: until taken back. Asked when it is written: a list on stdin may take its time."""
        return max(1, self.until - time.time_ns() // 1_000_000) if self.until else self.duration

    @property
    def prefix(self) -> str:
        """What a confirmation begins with."""
        return "dry run, nothing is changed: " if self.dry_run else ""


def steering_options(lasts: bool = True, required: bool = False) -> Callable[[F], F]:
    """The options ``--for``, ``--until``, ``--reason`` and ``--dry-run``, handed to the command as ``terms``.

    :param lasts: whether the change can end by itself (``--for``, ``--until``).
    :param required: whether it must.
    """

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def wrapped(
            *args: Any,
            reason: str,
            dry_run: bool,
            for_: str | None = None,
            until: str | None = None,
            **options: Any,
        ) -> Any:
            with usage_errors():
                terms = Terms(author(), printable(reason, "reason"), *_ends(for_, until, required), dry_run)
            return command(*args, terms=terms, **options)

        wrapped = click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")(
            wrapped
        )
        wrapped = click.option("--reason", metavar="TEXT", default="", help="Why; kept with the change.")(
            wrapped
        )
        if lasts:
            text = "Until then: 'tomorrow 08:00', 18:30, 2026-12-01."
            wrapped = click.option("--until", metavar="WHEN", help=text)(wrapped)
            wrapped = click.option("--for", "for_", metavar="TIME", help="For so long: 30m, 24h, 7d.")(
                wrapped
            )
        return wrapped  # type: ignore[return-value]

    return decorate


def _ends(for_: str | None, until: str | None, required: bool) -> tuple[int, int]:
    """What ``--for`` and ``--until`` mean: a duration and a wall time in ms, one of them 0, or both."""
    from policyd.cli.when import parse_for, parse_until

    if for_ is not None and until is not None:
        raise ValueError("--for and --until exclude each other")
    if for_ is not None:
        return parse_for(for_), 0
    if until is not None:
        return 0, round(parse_until(until, datetime.now().astimezone()).timestamp() * 1000)
    if required:
        raise ValueError("say for how long: --for 1h, or --until 18:30")
    return 0, 0


def _set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).json = True


def json_option(command: F) -> F:
    """``--json`` after the command means the same as before it."""
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=_set_json,
        help="JSON for programs instead of text.",
    )(command)


def known_user(
    connection: sqlite3.Connection, user: str, force: bool, anyway: str = " (--force sets it anyway)"
) -> None:
    """
    :raises NotFound: the account was never seen, and ``force`` is not set; ``anyway`` says what to do then.
    """
    from policyd.store import known

    if force or known.is_known(connection, user):
        return
    near = " or ".join(escape(name) for name in known.similar(connection, user))
    hint = f"; did you mean {near}?" if near else ""
    raise NotFound(f"{escape(user)} was never seen{hint}{anyway}")


def login(session: Session, name: str) -> str:
    """The account that ``name`` means on this site; :class:`ValueError` when it can be none."""
    text = printable(name, "login", 320)
    # An own client or a certificate is an account too, and has no domain to be added.
    plain = not text.startswith(("client:", "cert:"))
    account = session.config.site.login(text) if plain else fold(text)
    rescued = session.rescued
    if rescued is not None and plain and "@" not in account and not rescued.knows_default_domain:
        raise ValueError(
            f"{name!r} has no domain, and [site] default_domain cannot be read from {session.config_path}; "
            "write the whole login"
        )
    if not account or " " in account:
        raise ValueError(f"{name!r} is no login")
    return account


def canonical_user(session: Session, user: str) -> str:
    """:func:`login`, where a wrong name is a usage error."""
    with usage_errors():
        return login(session, user)


def account_of(session: Session, user: str) -> str:
    """The account that ``user`` means; accounts that are no logins (``cert:``, ``client:``) stand as they are."""
    if user.startswith(("cert:", "client:")):
        return fold(user.strip())
    return canonical_user(session, user)
