"""policyctl: its commands as a table, loaded when they are asked for, and the one place where errors become exit codes.

To add a command, write a function in a module of this package, decorate it with ``@click.command()`` (or
``@click.group()``), and enter it below in :data:`COMMANDS`: the words that are typed, then ``"module:function"``, a
short help without a full stop and, for the first word, the section of the help. Nothing else registers it, and the
module is imported only when the command runs. Take ``@pass_session`` from :mod:`policyd.cli.common` for the
configuration and the database, ``@json_option`` so that ``--json`` also stands after the command, and print with
``session.show`` (a table for people, JSON for programs). Import what is slow (twisted, dns, sqlite_utils, checks)
inside the function. Raise :class:`~policyd.errors.UserError` (exit code 1), ``NotFound`` (3) or
:class:`~policyd.cli.common.Unreachable` (4) with one line that says what to do, ``click.UsageError`` (2) for a wrong
argument; never print an error and exit yourself. A noun is an entry without a target: its members follow it, a bare
noun runs ``list``, and ``otherwise`` names the member that is meant when the next word is none of them (``ban user
X`` is ``ban add user X``).
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import click

from policyd import __version__
from policyd.cli.common import Session, Unreachable, did_you_mean, one_line
from policyd.errors import NotFound, PolicydError, UserError

DEFAULT_CONFIG = "/etc/policyd/policyd.toml"

#: Exit codes, the same for every command.
OK, FAILURE, USAGE, NOT_FOUND, UNREACHABLE = range(5)


class Entry(NamedTuple):
    """Where a command is to be found, and what the help says of it."""

    target: str
    help: str
    section: str = ""
    #: For a noun: the member that is meant when the next word is none of its members.
    otherwise: str = ""


_STEER, _LOOK, _SERVE = "Steer", "Look", "Serve"

#: Every command. The help is printed from here, without importing any of them.
COMMANDS: dict[str, Entry] = {
    "ban": Entry(
        "", "Refuse a login, sender, domain or client from the next request on", _STEER, otherwise="add"
    ),
    "ban add": Entry("policyd.cli.ban:add_ban", "Ban: ban user|sender|domain|client VALUE"),
    "ban rm": Entry("policyd.cli.ban:remove_ban", "Lift a ban"),
    "ban list": Entry("policyd.cli.ban:list_bans", "Bans in force"),
    "ban show": Entry("policyd.cli.ban:show_ban", "One ban, with who set it and why"),
    "unban": Entry("policyd.cli.ban:remove_ban", "Lift a ban", _STEER),
    "bans": Entry("policyd.cli.ban:list_bans", "Bans in force", _STEER),
    "allow": Entry(
        "", "Let a client, sender, domain or recipient pass without further checks", _STEER, otherwise="add"
    ),
    "allow add": Entry("policyd.cli.allow:add_allow", "Allow: allow client|sender|domain|recipient VALUE"),
    "allow rm": Entry("policyd.cli.allow:remove_allow", "Take an allow back"),
    "allow list": Entry("policyd.cli.allow:list_allows", "Allows in force"),
    "allow show": Entry("policyd.cli.allow:show_allow", "One allow, with who set it and why"),
    "unallow": Entry("policyd.cli.allow:remove_allow", "Take an allow back", _STEER),
    "disallow": Entry("policyd.cli.allow:remove_allow", "The same as unallow", _STEER),
    "allows": Entry("policyd.cli.allow:list_allows", "Allows in force", _STEER),
    "quota": Entry("", "Limits of accounts: what is used, own limits, grants", _STEER),
    "quota list": Entry("policyd.cli.quota_set:list_limits", "Accounts that have limits of their own"),
    "quota show": Entry(
        "policyd.cli.quota_show:quota_show", "Used, limit, room and when it returns, per window"
    ),
    "quota top": Entry("policyd.cli.quota_show:quota_top", "Accounts that used the most"),
    "quota set": Entry("policyd.cli.quota_set:set_limits", "Give an account limits of its own"),
    "quota add": Entry("policyd.cli.quota_set:set_limits", "The same as set"),
    "quota unset": Entry("policyd.cli.quota_set:unset_limits", "Take an account's own limits back"),
    "quota rm": Entry("policyd.cli.quota_set:unset_limits", "The same as unset"),
    "quota grant": Entry("policyd.cli.grant:add_grant", "Widen an account's limits for some time"),
    "quota reset": Entry("policyd.cli.quota_set:reset_usage", "Forget what an account has used"),
    "grant": Entry("", "One-off widenings of an account's limits", _STEER, otherwise="add"),
    "grant add": Entry("policyd.cli.grant:add_grant", "Widen an account's limits for some time"),
    "grant rm": Entry("policyd.cli.grant:remove_grant", "Take grants back"),
    "grant list": Entry("policyd.cli.grant:list_grants", "Grants in force"),
    "grant show": Entry("policyd.cli.grant:show_grant", "One grant, with who set it and why"),
    "user": Entry("", "Accounts: their tier, what is known of them, a note", _STEER),
    "user list": Entry("policyd.cli.user_list:list_users", "Accounts, their tiers and who is suspended"),
    "user show": Entry("policyd.cli.user_show:show_user", "All that is known of one account"),
    "user verify": Entry(
        "policyd.cli.user_set:verify", "Put accounts that you know into the tier 'verified'"
    ),
    "user tier": Entry("policyd.cli.user_set:set_tier", "Put an account into a tier by hand"),
    "user note": Entry("policyd.cli.user_set:note", "Keep a note about an account"),
    "user import": Entry("policyd.cli.user_import:import_users", "Take tiers and notes from a file"),
    "user export": Entry("policyd.cli.user_import:export_users", "All accounts as CSV or JSON lines"),
    "suspend": Entry("policyd.cli.suspend:suspend", "Suspend a login by hand", _STEER),
    "release": Entry("policyd.cli.suspend:release", "End a suspension", _STEER),
    "queue": Entry("policyd.cli.queue:queue", "What of a login waits in Postfix's queue; hold it", _STEER),
    "tier": Entry("", "Tiers of the configuration", _LOOK),
    "tier list": Entry("policyd.cli.tier:list_tiers", "Tiers and their limits"),
    "tier show": Entry("policyd.cli.tier:show_tier", "One tier, its limits and members"),
    "sender": Entry("", "As whom accounts may send, beyond their own address", _STEER),
    "sender allow": Entry("policyd.cli.sender:allow_sender", "Let an account send as an address or domain"),
    "sender add": Entry("policyd.cli.sender:allow_sender", "The same as allow"),
    "sender rm": Entry("policyd.cli.sender:remove_sender", "Take that back"),
    "sender list": Entry("policyd.cli.sender:list_senders", "Who may send as whom by hand"),
    "sender show": Entry("policyd.cli.sender:show_sender", "As whom one account may send by hand"),
    "greylist": Entry("", "Triplets of greylisting, and who is not delayed", _STEER),
    "greylist list": Entry("policyd.cli.greylist:list_triplets", "Triplets that wait or are known"),
    "greylist show": Entry("policyd.cli.greylist:list_triplets", "The same as list"),
    "greylist clients": Entry("policyd.cli.greylist:list_clients", "Clients that passed, and how often"),
    "greylist allow": Entry(
        "policyd.cli.greylist:allow", "Do not delay a client, sender, domain or recipient"
    ),
    "greylist add": Entry("policyd.cli.greylist:allow", "The same as allow"),
    "greylist unallow": Entry("policyd.cli.greylist:unallow", "Delay strangers there again"),
    "greylist rm": Entry("policyd.cli.greylist:unallow", "The same as unallow"),
    "greylist allows": Entry("policyd.cli.greylist:allows", "Who is not delayed by hand"),
    "greylist forget": Entry("policyd.cli.greylist:forget", "Forget triplets, or all of a client"),
    "dnsbl": Entry("", "Blocklists: their health and use, and one taken out by hand", _STEER),
    "dnsbl list": Entry("policyd.cli.dnsbl:list_lists", "Health, hits, overlap and latency of each list"),
    "dnsbl show": Entry("policyd.cli.dnsbl:show_list", "All that is known of one list"),
    "dnsbl off": Entry("policyd.cli.dnsbl:off", "Leave a list out"),
    "dnsbl on": Entry("policyd.cli.dnsbl:on", "Let it count again"),
    "dnsbl check": Entry("policyd.cli.dnsbl_check:check", "What every list says of an address or domain"),
    "check": Entry("", "Checks and their modes", _STEER),
    "check list": Entry("policyd.cli.check:list_checks", "Checks in the order in which they run"),
    "check show": Entry("policyd.cli.check:show_check", "One check and its mode"),
    "check enforce": Entry("policyd.cli.check:enforce", "Let a check's verdict hold"),
    "check shadow": Entry("policyd.cli.check:shadow", "Let a check only say what it would have done"),
    "check off": Entry("policyd.cli.check:off", "Do not ask a check"),
    "check auto": Entry("policyd.cli.check:auto", "Back to the configured mode"),
    "learn": Entry(
        "policyd.cli.learn:learn", "Learn accounts, limits and recipients from Postfix's logs", _STEER
    ),
    "shadow": Entry("policyd.cli.shadow:shadow", "What the checks in shadow would have done", _LOOK),
    "enforce": Entry("policyd.cli.shadow:enforce", "Look at what is in shadow, and switch it on", _STEER),
    "pause": Entry(
        "policyd.cli.pause:pause", "Everything in shadow for some time; bans and allows stay", _STEER
    ),
    "resume": Entry("policyd.cli.pause:resume", "End a pause", _STEER),
    "alert": Entry("", "What the admin is told of, and whether that works", _LOOK),
    "alert list": Entry("policyd.cli.alert:list_alerts", "Alerts that wait, and with --all all"),
    "alert show": Entry("policyd.cli.alert:show_alert", "One alert as its channel gets it"),
    "alert retry": Entry("policyd.cli.alert:retry_alerts", "Send now what waits"),
    "alert test": Entry("policyd.cli.alert:test_channels", "Send a test and say what came of it"),
    "history": Entry("policyd.cli.history:history", "Who changed what by hand, and why", _LOOK),
    "dump": Entry("policyd.cli.dump:dump", "All steering data as JSON lines", _SERVE),
    "load": Entry("policyd.cli.dump:load", "Take in what dump wrote, all or nothing", _SERVE),
    "why": Entry("policyd.cli.why:why", "Can this account send now, and if not, what helps", _LOOK),
    "explain": Entry("policyd.cli.explain:explain", "One decision: each check's opinion and numbers", _LOOK),
    "log": Entry("policyd.cli.log:log", "Search the decisions", _LOOK),
    "ask": Entry("policyd.cli.ask:ask", "Send one request to the running daemon", _LOOK),
    "try": Entry("policyd.cli.try_cmd:try_", "Decide one request here; nothing is counted", _LOOK),
    "status": Entry("policyd.cli.status:status", "Does it run, and is all well", _LOOK),
    "doctor": Entry("policyd.cli.doctor:doctor", "What is wrong, why it matters, and what mends it", _LOOK),
    "spf": Entry("", "Sender policies (SPF)", _LOOK),
    "spf check": Entry("policyd.cli.spf:check", "May this client send for that domain, and why"),
    "postfix": Entry("", "What Postfix needs to ask policyd", _SERVE, otherwise="show"),
    "postfix show": Entry("policyd.cli.postfix:show", "The commands for this machine"),
    "postfix enable": Entry("policyd.cli.postfix:enable", "Have Postfix ask policyd, and fill [site]"),
    "postfix disable": Entry("policyd.cli.postfix:disable", "Take that back"),
    "policy": Entry("policyd.cli.policy:policy", "The policy in plain sentences, to be published", _LOOK),
    "config": Entry("", "The configuration file", _SERVE),
    "config check": Entry("policyd.cli.config_cmd:check", "Every problem of the file, with its place"),
    "config show": Entry("policyd.cli.config_cmd:show", "What is in force, defaults included"),
    "import": Entry("", "Limits and counts of another daemon", _SERVE),
    "import rate-limit": Entry("policyd.cli.import_cmd:rate_limit", "policyd-rate-limit: YAML and SQLite"),
    "import iredapd": Entry("policyd.cli.import_cmd:iredapd", "iRedAPD: the table throttle"),
    "db": Entry("", "The database", _SERVE),
    "db check": Entry("policyd.cli.db:check", "Is the file sound"),
    "db size": Entry("policyd.cli.db:size", "What takes the room"),
    "db query": Entry("policyd.cli.query:query", "Ask the tables in SQL"),
    "db backup": Entry("policyd.cli.db:backup", "Copy it while the daemon runs"),
    "db restore": Entry("policyd.cli.db:restore", "Put a backup in its place"),
    "db prune": Entry("policyd.cli.db:prune", "Drop old decisions now"),
    "db compact": Entry("policyd.cli.db:compact", "Give free room back to the file system"),
}


class LazyGroup(click.Group):
    """A group whose members stand in :data:`COMMANDS` and are imported when they run."""

    def __init__(self, prefix: str, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.prefix = prefix

    def _entry(self, name: str) -> Entry | None:
        return COMMANDS.get(f"{self.prefix}{name}")

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The members' names, in the order of the table."""
        names = [path.removeprefix(self.prefix) for path in COMMANDS if path.startswith(self.prefix)]
        return [name for name in names if " " not in name]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The member ``cmd_name``, imported now; ``None`` when there is none."""
        entry = self._entry(cmd_name)
        if entry is None:
            return None
        if entry.target:
            command = _imported(f"{self.prefix}{cmd_name}", entry.target)
            command.short_help = command.short_help or entry.help
            return command
        return Noun(f"{self.prefix}{cmd_name} ", entry)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with a proposal when the name is unknown."""
        if self._entry(args[0]) is None and not ctx.resilient_parsing:
            near = did_you_mean(args[0], self.list_commands(ctx))
            ctx.fail(f"there is no command {f'{self.prefix}{args[0]}'!r}{near}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The members under their sections, from the table alone."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            entry = COMMANDS[f"{self.prefix}{name}"]
            sections.setdefault(entry.section or "Commands", []).append((name, entry.help))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)


class Noun(LazyGroup):
    """A noun: bare it lists, and with ``otherwise`` what follows may be that member's arguments."""

    def __init__(self, prefix: str, entry: Entry) -> None:
        also = f"Without one of these words '{entry.otherwise}' is meant." if entry.otherwise else ""
        super().__init__(
            prefix,
            name=prefix.rsplit(maxsplit=1)[-1],
            help=f"{entry.help}.\n\n{also}",
            short_help=entry.help,
            no_args_is_help=False,
        )
        self.otherwise = entry.otherwise

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the word in that a bare noun, or a short form, leaves out."""
        if not ctx.resilient_parsing:
            if all(arg == "--json" for arg in args) and self._entry("list") is not None:
                args = ["list", *args]
            elif self.otherwise and (not args or args[0] not in self.list_commands(ctx)):
                args = [self.otherwise, *args]
            elif not args:
                args = ["--help"]
        return super().parse_args(ctx, args)


def _imported(path: str, target: str) -> click.Command:
    module_name, _, function = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise UserError(
                f"'{path}' needs the Python module {error.name}, which is not installed"
            ) from None
        raise UserError(f"'{path}' is not part of this installation: {module_name} is missing") from None
    command = getattr(module, function)
    assert isinstance(command, click.Command)
    return command


class Policyctl(LazyGroup):
    """The root: every error of every command comes by here, becomes one line on stderr, and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command that ``args`` name and exit."""
        for argument in sys.argv[1:] if args is None else args:
            try:
                argument.encode()
            except UnicodeEncodeError:
                _end(USAGE, f"{argument.encode('utf-8', 'backslashreplace').decode()} is not UTF-8")
        try:
            result = super().main(
                args, prog_name or "policyctl", complete_var, standalone_mode=False, **extra
            )
        except click.UsageError as error:
            text = error.format_message().rstrip(".")
            if error.ctx is not None and not text.endswith("?"):
                text += f"; see {error.ctx.command_path} --help"
            _end(USAGE, text)
        except click.ClickException as error:
            _end(error.exit_code, error.format_message())
        except click.Abort:
            _end(FAILURE, "aborted")
        except PolicydError as error:
            _end(exit_code_of(error), *str(error).split("\n"))
        except OSError as error:
            place = f"{error.filename}: " if error.filename is not None else ""
            help_ = "; run policyctl as root, or as who may" if isinstance(error, PermissionError) else ""
            _end(FAILURE, f"{place}{error.strerror or error}{help_}")
        except ImportError as error:
            # As root a change is made as the owner of the database; what policyctl is made of is read then, too.
            _end(
                FAILURE,
                f"{error}; the installation is not whole, or the owner of the database may not read it: install it where "
                "every user may read, or run policyctl as that owner",
            )
        sys.exit(result if isinstance(result, int) else OK)


def exit_code_of(error: PolicydError) -> int:
    """What a script is told about an error."""
    if isinstance(error, NotFound):
        return NOT_FOUND
    return UNREACHABLE if isinstance(error, Unreachable) else FAILURE


def _end(code: int, *lines: str) -> NoReturn:
    try:
        for line in lines:
            click.echo(f"policyctl: {one_line(line)}", err=True)
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
    sys.exit(code)


@click.group(
    "policyctl",
    cls=Policyctl,
    prefix="",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--config", metavar="FILE", default=DEFAULT_CONFIG, show_default=True, help="The daemon's configuration."
)
@click.option("--json", "as_json", is_flag=True, help="JSON for programs instead of tables.")
@click.version_option(__version__, prog_name="policyctl", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, config: str, as_json: bool) -> None:
    """See and steer policyd.

    Works on the daemon's database, whether or not the daemon runs; what is changed holds from the next request on.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 the daemon cannot be reached.
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False
    ctx.obj = Session(config, as_json)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
