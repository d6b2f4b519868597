"""The sections of the configuration: what each key means, how it is read, and what holds without it.

The help texts are those of the manual, policyd.toml(5). A key whose section is a table of its own says so in its metadata as
``of``: the class of the table, or of each member of a list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from policyd.condition import Condition
from policyd.config import values
from policyd.config.values import ANY, split_inet
from policyd.match import NetworkSet, parse_address
from policyd.opinion import ENFORCE, OFF, SHADOW
from policyd.request import MX, SUBMISSION, Site
from policyd.sentence import Sentence
from policyd.settings import (
    boolean,
    duration,
    limit,
    list_of,
    networks,
    one_of,
    set_of,
    setting,
    size,
    string,
    template,
    whole,
)
from policyd.suspending import Suspending
from policyd.tiers import Promote, Tiers
from policyd.units import DAY, HOUR, SECOND, Limit


def _raw(value: Any) -> Any:
    return value


def _table(of: type[Any], default: Callable[[], Any], *, help: str) -> Any:
    """A key whose value is a table of its own, or a list of them."""
    return field(default_factory=default, metadata={"read": _raw, "help": help, "key": "", "of": of})


def _networks(help: str) -> dict[str, Any]:
    """The metadata of a key that holds networks; its default must be made anew each time."""
    return {"read": networks, "help": help, "key": ""}


@dataclass(frozen=True)
class SiteSection:
    """``[site]``: who "we" are."""

    domains: frozenset[str] = setting(set_of(values.domain), frozenset(), help="The site's own mail domains.")
    networks: NetworkSet = field(
        default_factory=NetworkSet,
        metadata=_networks("Client networks of the site's own; mail from them is submission."),
    )
    default_domain: str = setting(
        values.domain_or_none, "", help="Appended to logins that have no domain; empty: nothing."
    )
    submission_contexts: frozenset[str] = setting(
        set_of(values.label),
        frozenset({SUBMISSION}),
        help="Values of Postfix's policy_context that mean submission.",
    )

    certificates: frozenset[str] = setting(
        set_of(values.certificate),
        frozenset(),
        help='Fingerprints of client certificates that mean submission; "any": each one that Postfix verified.',
    )
    country_database: str = setting(
        values.file_or_none,
        "",
        help="A country database of MaxMind's format, for detectors of countries; empty: none.",
    )

    def site(self) -> Site:
        """The same for the requests."""
        return Site(
            self.domains, self.networks, self.default_domain, self.submission_contexts, self.certificates
        )


@dataclass(frozen=True)
class Listener:
    """One member of ``[server] listen``. ``direction`` is ``""`` where both directions come in; ``mode`` and ``group`` are
    those of a UNIX socket."""

    address: str = setting(
        values.address, help="inet:HOST:PORT, unix:/PATH, systemd:NAME or a Twisted endpoint."
    )
    label: str = setting(values.label, "", help="The name in logs; by default the address.")
    direction: str = setting(
        values.listener_direction,
        "",
        key="for",
        help="The direction of all that comes in here: submission, mx, or any.",
    )
    allow_from: NetworkSet = field(
        default_factory=NetworkSet,
        metadata=_networks("Networks that may connect; required where the address is not loopback."),
    )
    mode: int = setting(values.mode, 0o660, help="Permissions of a UNIX socket, octal in quotes.")
    group: str = setting(
        values.group, "", help="Group of a UNIX socket; by default that of its directory or of policyd."
    )

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.address)

    @property
    def kind(self) -> str:
        """``inet``, ``unix``, ``systemd`` or ``endpoint``."""
        kind = self.address.partition(":")[0]
        return kind if kind in {"inet", "unix", "systemd"} else "endpoint"

    @property
    def inet(self) -> tuple[str, int]:
        """Host, without brackets, and port of an ``inet:`` address."""
        return split_inet(self.address)

    @property
    def routable(self) -> bool:
        """Whether others than this machine reach an ``inet:`` address."""
        if self.kind != "inet":
            return False
        host = self.inet[0]
        parsed = parse_address(host)
        return host != "localhost" and not (parsed is not None and parsed.is_loopback)


@dataclass(frozen=True)
class Fail:
    """``fail`` of ``[server]``."""

    submission: str = setting(
        one_of("defer", "dunno", "reject"), "defer", help="Answer to submission when no decision is possible."
    )
    mx: str = setting(
        one_of("defer", "dunno", "reject"), "dunno", help="Answer to other mail when no decision is possible."
    )


@dataclass(frozen=True)
class Server:
    """``[server]``: where Postfix asks, and what it is answered in need. ``deadline`` is in ms."""

    listen: tuple[Listener, ...] = _table(
        Listener,
        lambda: (Listener("inet:127.0.0.1:10047"),),
        help="Addresses in Postfix's spelling, or tables with address, label, for, allow_from, mode and group.",
    )
    deadline: int = setting(
        values.deadline, 5 * SECOND, help="Every request is answered within this time, 1s to 90s."
    )
    fail: Mapping[str, str] = _table(
        Fail,
        lambda: dataclasses.asdict(Fail()),
        help="What is answered when no decision is possible, by direction.",
    )
    max_connections: int = setting(
        values.connections, 2000, help="Connections held at once; more are closed at once."
    )


@dataclass(frozen=True)
class Store:
    """``[store]``: the database. ``path`` is absolute, whatever was written."""

    path: str = setting(
        values.store_path,
        "/var/lib/policyd/policyd.db",
        key="url",
        help="sqlite:///ABSOLUTE/PATH, or sqlite:PATH relative to the working directory.",
    )
    durability: str = setting(
        one_of("full", "normal"),
        "full",
        help="full; or normal: faster, may lose the last moment on power loss.",
    )
    memory_backlog: int = setting(
        whole,
        10_000,
        help="Requests that are counted in memory while the database is in trouble; then fail is answered.",
    )


@dataclass(frozen=True)
class Log:
    """``[log]``: the decision log."""

    decisions: tuple[str, ...] = setting(
        list_of(values.sink),
        ("file:/var/log/policyd/decisions.log",),
        help='Where each decision is written: "file:PATH", "syslog:FACILITY", "-" (standard output).',
    )
    format: str = setting(
        one_of("text", "json"), "text", help="One line a decision: text (key=value) or json."
    )


@dataclass(frozen=True)
class Keep:
    """``[keep]``: how long decisions stay. ``decisions`` is in ms, the sizes in bytes."""

    decisions: int = setting(
        values.retention, 90 * DAY, help="Age at which decisions are removed, at least 1h."
    )
    max_size: int = setting(
        size, 10_000_000_000, help="Size that the database does not exceed: the oldest decisions go in time."
    )
    min_free: int = setting(
        size,
        1_000_000_000,
        help="Free space on the disk below which decisions go first; counts and bans never.",
    )
    memory: int = setting(
        values.memory,
        1_000_000,
        help="How many facts of each kind are remembered, greylist triplets for example.",
    )


@dataclass(frozen=True)
class Dns:
    """``[dns]``: who is asked, and for how long. ``timeout`` is in ms, ``cache_size`` in bytes."""

    nameservers: tuple[str, ...] = setting(
        values.nameservers,
        (),
        help="Nameservers that resolve for us, in the order in which they are asked; empty: the system's.",
    )
    timeout: int = setting(
        values.dns_timeout,
        2 * SECOND,
        help="Time of one look-up, all nameservers together; the deadline stands above it.",
    )
    cache_size: int = setting(
        values.cache_size, 32_000_000, help="Memory for what the DNS said; what is oldest goes first."
    )


@dataclass(frozen=True)
class Alerts:
    """``[alerts]``: how alerts are sent. ``timeout`` and ``not_asked`` are in ms; ``smtp`` is host and port."""

    smtp: tuple[str, int] = setting(
        values.smtp_server, ("127.0.0.1", 25), help="The mail server that takes alerts for mailto:."
    )
    sender: str = setting(
        values.sender_address,
        "",
        help="The address in From of a mail; empty: policyd at the name of the host. The envelope has none.",
    )
    timeout: int = setting(
        values.alert_timeout, 10 * SECOND, help="Time that a channel has to take an alert, 1s to 60s."
    )
    hook: str = setting(
        values.absolute_file,
        "/run/policyd/hook.sock",
        help="The socket of policyd-hook, which runs the commands of exec:.",
    )
    not_asked: int = setting(
        values.not_asked, HOUR, help="After so long without a question of Postfix's not-asked is raised."
    )


@dataclass(frozen=True)
class AlertSection:
    """One ``[[alert]]``: a channel and what it is told. ``repeat_after`` is in ms."""

    to: str = setting(
        values.alert_target,
        help='Where: "mailto:ADDRESS", "https://...", "exec:/PATH", "syslog:FACILITY" or "journal".',
    )
    name: str = setting(
        values.label_or_none,
        "",
        help="The name in logs and for policyctl alert; by default the kind of place and its first part.",
    )
    on: tuple[str, ...] = setting(
        list_of(values.alert_kind), (), help="What it is told; empty: all there is."
    )
    repeat_after: int = setting(
        values.alert_repeat, 6 * HOUR, help="The same of the same is told again after this at the earliest."
    )
    secret_file: str = setting(
        values.absolute_file_or_none,
        "",
        help="A file with the secret that a webhook is signed with; empty: no signature.",
    )

    @property
    def kind(self) -> str:
        """``mailto``, ``https``, ``http``, ``exec``, ``syslog`` or ``journal``."""
        return self.to.partition(":")[0].lower()


@dataclass(frozen=True)
class TiersSection:
    """``[tiers]``."""

    default: str = setting(
        lambda value: "" if value == "" else values.name(value),
        "",
        help="Tier of the accounts that no tier names; required once there are tiers, empty: such accounts have no limits.",
    )
    learned: str = setting(
        lambda value: "" if value == "" else values.name(value),
        "",
        help="Tier of the accounts that policyctl learn found in the logs; empty: the default one.",
    )


@dataclass(frozen=True)
class TierSection:
    """One ``[tier.NAME]``."""

    limits: tuple[Limit, ...] = setting(
        list_of(limit), (), help='Limits of each account, as "20 recipients per 1h"; all of them hold.'
    )
    members: frozenset[str] = setting(
        set_of(values.member), frozenset(), help="Logins in this tier, or @domain for all of a domain."
    )

    promote: Promote | None = setting(  # noqa: RUF009, a field like all others
        values.promote,
        None,
        help='Clean sending leads to another tier: { to = "NAME", after = "14d", min_messages = 10 }.',
    )
    quiet: bool = setting(
        boolean,
        False,
        help="Detectors of how much is sent find nothing in this tier; without the key so in a tier named bulk.",
    )


@dataclass(frozen=True)
class DetectSection:
    """One ``[[detect]]``."""

    name: str = setting(values.name, help="The name in logs, in alerts and for policyctl check.")
    when: Sentence = setting(  # noqa: RUF009, a field like all others
        values.sentence, help='What is looked for, as "more than 8 client networks per user in 10m".'
    )
    then: str = setting(one_of("suspend", "alert"), "alert", help="Suspend the account, or alert the admin.")
    mode: str = setting(
        one_of(ENFORCE, SHADOW, OFF), ENFORCE, help="enforce; shadow: record what it would do; off."
    )
    except_networks: NetworkSet = field(
        default_factory=NetworkSet,
        metadata=_networks("Client networks that never count for it; the site's own never do."),
    )


class Detection(NamedTuple):
    """One ``[[detect]]`` and where it stands, ``FILE:LINE``."""

    section: DetectSection
    place: str


@dataclass(frozen=True)
class SuspendSection:
    """``[suspend]``: how long, and who never is. Times are in ms."""

    ladder: tuple[int, ...] = setting(
        values.ladder,
        Suspending.ladder,
        help='How long each suspension lasts while the ones before are remembered; "permanent": until it is released.',
    )
    forget_after: int = setting(
        duration,
        Suspending.forget_after,
        help="After this time a suspension no longer makes the next one longer.",
    )
    never: frozenset[str] = setting(
        set_of(values.member),
        frozenset(),
        help="Logins, or @domain for all of a domain, that are alerted about and never suspended.",
    )
    text: str = setting(template("ref"), Suspending.text, help="What a suspended login is told.")

    def suspending(self, account: Callable[[str], str]) -> Suspending:
        """The same for the watch; ``account`` gives the account that a member means."""
        never = frozenset(m.removeprefix("@") if m.startswith("@") else account(m) for m in self.never)
        return Suspending(self.ladder, self.forget_after, never, self.text)


@dataclass(frozen=True)
class CheckCommon:
    """What every ``[[check]]`` has; its other keys are those of the check that ``use`` names."""

    use: str = setting(
        string, help="The check: one that policyd brings, or the dotted path of a Python module."
    )
    name: str = setting(
        values.name, "", help="The name in logs and for policyctl check; by default that of use."
    )
    direction: str = setting(
        one_of(SUBMISSION, MX, ANY), ANY, key="for", help="The mail it is for: submission, mx, or any."
    )
    mode: str = setting(
        one_of(ENFORCE, SHADOW, OFF), ENFORCE, help="enforce; shadow: decide and record, answer nothing; off."
    )
    on_error: str = setting(
        one_of("skip", "defer"), "skip", help="What its own failure means: skip it, or defer the mail."
    )
    when: tuple[Condition, ...] = setting(
        list_of(values.condition),
        (),
        help="It is asked only if one of these holds of what checks before it found; empty: always.",
    )


@dataclass(frozen=True)
class CheckSection:
    """One ``[[check]]`` as read. ``options`` is an instance of the check's ``Options``."""

    name: str
    use: str
    direction: str
    mode: str
    on_error: str
    options: Any
    #: ``FILE:LINE``, for the errors that the check itself finds.
    place: str = field(default="", compare=False)
    #: The check's own keys as they were written.
    given: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    when: tuple[Condition, ...] = ()
    #: ``FILE:LINE`` of each key that is written.
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Config:
    """A configuration without errors."""

    path: str = field(compare=False)
    site: Site
    server: Server
    store: Store
    log: Log
    keep: Keep
    dns: Dns
    alerts: Alerts
    channels: tuple[AlertSection, ...]
    tiers: Tiers
    checks: tuple[CheckSection, ...]
    detects: tuple[Detection, ...]
    suspend: SuspendSection
    suspending: Suspending
    #: ``[site] country_database``.
    country_database: str
    #: Eight hex digits: a digest of what decides (site, tiers, checks), however it is written.
    policy_version: str


#: The sections that are one table each, in the order of the manual.
SECTIONS: dict[str, type[Any]] = {
    "site": SiteSection,
    "server": Server,
    "store": Store,
    "log": Log,
    "keep": Keep,
    "dns": Dns,
    "alerts": Alerts,
    "tiers": TiersSection,
    "suspend": SuspendSection,
}
