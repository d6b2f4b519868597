"""``policyctl postfix``: what Postfix needs to ask policyd, as commands to type, or done and taken back."""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from policyd.answer import escape, shell_word
from policyd.cli.common import Session, json_option, one_line, pass_session
from policyd.errors import PolicydError, UserError

if TYPE_CHECKING:
    from policyd.config import Config
    from policyd.postfix.addresses import Addresses
    from policyd.postfix.settings import Settings
    from policyd.postfix.wiring import Plan

F = Callable[..., Any]
#: What the shipped configuration calls the site until somebody says better.
PLACEHOLDER = "example.org"
#: How long the daemon may take to read its file anew before it is left alone with that, s.
PATIENCE = 5.0


def postfix_option(command: F) -> F:
    """``--postfix-config``: which instance."""
    return click.option(
        "--postfix-config",
        "instance",
        metavar="DIR",
        default="",
        help="The directory of main.cf, of another instance than the default one.",
    )(command)


def listeners(config: Config) -> list[tuple[str, str]]:
    """Where policyd listens, and for which direction."""
    from policyd.postfix.addresses import resolved

    return resolved((listener.address, listener.direction) for listener in config.server.listen)


class Wanted(NamedTuple):
    """What is to be changed."""

    settings: Settings
    addresses: Addresses
    plan: Plan


def _plan(session: Session, instance: str) -> Wanted:
    from policyd.postfix import addresses, settings, wiring

    config = session.sound_config
    found = settings.read(instance)
    chrooted = any(entry.chroot for entry in found.entries)
    chosen = addresses.choose(listeners(config), found.queue_directory, chrooted)
    return Wanted(found, chosen, wiring.plan(found, chosen, config.server.deadline))


def _records(plan: Plan) -> list[dict[str, Any]]:
    return [change._asdict() for change in plan.changes]


@click.command()
@postfix_option
@json_option
@pass_session
def show(session: Session, instance: str) -> None:
    """The commands that have this machine's Postfix ask policyd. Changes nothing.

    Also: postfix enable, which does it, and postfix disable, which takes it back.
    """
    wanted = _plan(session, instance)
    commands = wanted.plan.commands(instance)
    for note in wanted.plan.notes:
        session.note(note)
    reload = f"postfix {f'-c {shell_word(instance)} ' if instance else ''}reload"
    lines = (
        [*commands, reload] if commands else ["Postfix asks policyd as it should; there is nothing to change"]
    )
    session.done(
        {
            "changes": _records(wanted.plan),
            "commands": [*commands, reload] if commands else [],
            "notes": wanted.plan.notes,
        },
        *(one_line(line) for line in lines),
    )


@click.command()
@postfix_option
@click.option("--yes", is_flag=True, help="Do not ask before the change.")
@click.option("--force", is_flag=True, help="Also while policyd does not run.")
@click.option("--dry-run", is_flag=True, help="Show the difference, and change nothing.")
@json_option
@pass_session
def enable(session: Session, instance: str, yes: bool, force: bool, dry_run: bool) -> None:
    """Have Postfix ask policyd, and fill [site] of policyd.toml from postconf.

    Shows the difference and asks first. Keeps copies of main.cf and master.cf, runs 'postfix check', and puts everything
    back if that fails. What is right already stays as it is.
    """
    from policyd.postfix.edit import Editor

    if session.json and not (yes or dry_run):
        raise click.UsageError("--json needs --yes or --dry-run", click.get_current_context())
    wanted = _plan(session, instance)
    site = _Site(session, wanted.settings)
    editor = Editor(wanted.settings)
    notes = [*wanted.plan.notes, *site.notes]
    record = {
        "changes": _records(wanted.plan),
        "site": site.found,
        "notes": notes,
        "dry_run": dry_run,
    }
    for note in notes:
        session.note(note)
    if not wanted.plan.changes and not site.changed:
        session.done(
            record, "Postfix asks policyd as it should, and knows [site]; there is nothing to change"
        )
        return
    if not session.json:
        _show_difference(editor, wanted, site)
    if dry_run:
        session.done(record, "dry run, nothing is changed")
        return
    _must_run(session, force)
    if not yes:
        click.confirm("Change it?", abort=True)
    lines = []
    if wanted.plan.changes:
        warned = editor.apply(wanted.plan)
        if warned:
            session.warn(f"postfix check: {warned}")
        runs = editor.running()
        lines.append(
            f"{escape(editor.directory, 1000)}: changed and checked; "
            + ("Postfix has taken it" if runs else "Postfix does not run")
            + "; 'policyctl postfix disable' takes it back"
        )
    if site.changed:
        site.write()
        lines.append(f"{escape(site.file, 1000)}: [site] is filled; {_reload(session)}")
    session.done(record, *lines)


def _show_difference(editor: Any, wanted: Wanted, site: _Site) -> None:
    pairs = (
        {editor.path(name): texts for name, texts in editor.preview(wanted.plan).items()}
        if wanted.plan.changes
        else {}
    )
    pairs[site.file] = (site.before, site.after)
    for name, (before, after) in pairs.items():
        colors = {"+": "green", "-": "red"}
        for line in difflib.unified_diff(
            before.splitlines(), after.splitlines(), f"{name} now", f"{name} then", n=1, lineterm=""
        ):
            click.echo(click.style(one_line(line), fg=colors.get(line[:1])))


def _must_run(session: Session, force: bool) -> None:
    from policyd.store import locks

    if not force and locks.daemon_running(session.database) is False:
        raise UserError(
            "policyd does not run, and submission would wait for it; start it first (systemctl start policyd), or add --force"
        )


def _reload(session: Session) -> str:
    from policyd.cli.status import daemon_pid

    pid = daemon_pid(session.database)
    if pid is None:
        return "policyd reads it when it starts, or with 'systemctl reload policyd'"
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        return f"policyd could not be told ({error.strerror}): 'systemctl reload policyd'"
    return f"policyd, pid {pid}, {'has read it' if _taken_over(session) else 'was told to read it'}"


def _taken_over(session: Session) -> bool:
    """Whether the daemon says that it goes by the file as it is now; waits for that, so that a doctor asked next finds it so."""
    from policyd.cli.status import in_force
    from policyd.store.clock import wall

    end = time.monotonic() + PATIENCE
    # A file with errors, or a database that cannot be read, is told by the doctor; Postfix's part is done.
    with contextlib.suppress(PolicydError):
        wanted = Session(session.config_path, session.json).config.policy_version
        while time.monotonic() < end:
            with session.reading() as connection:
                if in_force(connection, wall()) == wanted:
                    return True
            time.sleep(0.05)
    return False


class _Site:
    """[site] of policyd.toml as postconf would have it, beside what the admin wrote there."""

    def __init__(self, session: Session, settings: Settings) -> None:
        from policyd.config.rewrite import with_keys
        from policyd.config.source import read
        from policyd.postfix.site import ourselves

        config = session.sound_config
        ours = ourselves(settings)
        self.notes = list(ours.notes)
        self.found = _merged(config, ours.domains, ours.networks, ours.default_domain)
        document = read(session.config_path)
        place = next(
            (document.places[path] for path in (("site", "domains"), ("site",)) if path in document.places),
            f"{session.config_path}:1",
        )
        self.file = place.rpartition(":")[0]
        with open(self.file, encoding="utf-8", newline="") as file:
            self.before = file.read()
        try:
            self.after = with_keys(self.before, "site", self.found)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
        self._config_path = session.config_path

    @property
    def changed(self) -> bool:
        """Whether there is anything to write."""
        return self.before != self.after

    def write(self) -> None:
        """Put the new text in the file's place, if policyd would take it.

        :raises ConfigError: it would not; nothing is changed then.
        """
        from policyd.checks import options_of
        from policyd.config import load

        old = f"{self.file}.before-policyctl"
        shutil.copy2(self.file, old)
        rights = os.stat(self.file)
        partial = f"{self.file}.policyd-new"
        with open(partial, "w", encoding="utf-8", newline="") as file:
            file.write(self.after)
        shutil.copymode(self.file, partial)
        with contextlib.suppress(PermissionError):
            os.chown(partial, rights.st_uid, rights.st_gid)
            os.chown(old, rights.st_uid, rights.st_gid)
        os.replace(partial, self.file)
        try:
            load(self._config_path, options_of)
        except UserError:
            os.replace(old, self.file)
            raise
        os.unlink(old)


def _merged(
    config: Config, domains: tuple[str, ...], networks: tuple[str, ...], origin: str
) -> dict[str, str | list[str]]:
    """What the admin wrote and what Postfix says together; the placeholder of the shipped file goes."""
    import ipaddress

    from policyd.config import values

    site = config.site
    ours = []
    for domain in domains:
        with contextlib.suppress(ValueError):
            ours.append(values.domain(domain))
    wrote = [domain for domain in sorted(site.domains) if domain != PLACEHOLDER or PLACEHOLDER in ours]
    found: dict[str, str | list[str]] = {}
    together = list(dict.fromkeys([*wrote, *ours]))
    # Where Postfix knows none, even the placeholder says more.
    if together and set(together) != set(site.domains):
        found["domains"] = together
    known = [ipaddress.ip_network(str(network)) for network in site.networks]
    more = [
        network
        for network in map(ipaddress.ip_network, networks)
        if not any(network.version == each.version and network.subnet_of(each) for each in known)  # type: ignore[arg-type]
    ]
    if more:
        found["networks"] = [*map(str, known), *map(str, more)]
    if origin and (
        not site.default_domain or (site.default_domain == PLACEHOLDER and PLACEHOLDER not in ours)
    ):
        with contextlib.suppress(ValueError):
            found["default_domain"] = values.domain(origin)
    return found


@click.command()
@postfix_option
@click.option("--yes", is_flag=True, help="Do not ask before the change.")
@json_option
@pass_session
def disable(session: Session, instance: str, yes: bool) -> None:
    """Take back what 'enable' changed in main.cf and master.cf; policyd.toml stays as it is."""
    from policyd.postfix import settings
    from policyd.postfix.edit import STATE, Editor

    if session.json and not yes:
        raise click.UsageError("--json needs --yes", click.get_current_context())
    found = settings.read(instance)
    editor = Editor(found)
    state = editor.state()
    if state is None:
        raise UserError(
            f"{editor.path(STATE)} is not there, so nothing was enabled by policyctl; "
            "'postconf -n' and 'postconf -P' show what was written by hand"
        )
    if not yes:
        how = (
            "exactly as they were before"
            if editor.whole(state)
            else "as before, but for what was edited since"
        )
        click.confirm(f"main.cf and master.cf in {editor.directory} become {how}. Change them?", abort=True)
    notes = editor.undo(state, [address for address, _ in listeners(session.config)])
    for note in notes:
        session.note(note)
    session.done(
        {"disabled": True, "notes": notes},
        f"{escape(editor.directory, 1000)}: Postfix does not ask policyd any more",
    )
