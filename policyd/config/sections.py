"""The sections of the configuration: what each key means, how it is read, and what holds without it.

The help texts are those of the manual, policyd.toml(5). A key whose section is a table of its own says so in its metadata as
``of``: the class of the table, or of each member of a list.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from policyd.match import NetworkSet, fold, parse_address
from policyd.opinion import ENFORCE, OFF, SHADOW
from policyd.request import MX, SUBMISSION, Site
from policyd.settings import (
    Reader,
    duration,
    limit,
    list_of,
    networks,
    one_of,
    set_of,
    setting,
    size,
    string,
    whole,
)
from policyd.tiers import Tiers
from policyd.units import DAY, HOUR, SECOND, Limit, format_duration

ANY = "any"
#: Postfix gives up after smtpd_policy_service_timeout, 100 s unless set (postconf(5)).
MAX_DEADLINE = 90 * SECOND
#: sockaddr_un holds 108 octets with the final NUL (unix(7)).
MAX_SOCKET_PATH = 107

NAME = re.compile(r"[a-z0-9-]+")
FACILITIES = ("mail", "daemon", "user", "auth", "authpriv", *(f"local{number}" for number in range(8)))


def name(value: Any) -> str:
    """A name of a check or tier."""
    if not NAME.fullmatch(string(value)):
        raise ValueError(f"{value!r} is no name; use small letters, digits and hyphens")
    return str(value)


def domain(value: Any) -> str:
    """A domain of ours, folded."""
    text = fold(string(value).strip()).rstrip(".")
    if not text or text.startswith(".") or "@" in text or not _plain(text) or len(text) > 255:
        raise ValueError(f"{value!r} is no domain; write example.org")
    return text


def _default_domain(value: Any) -> str:
    return "" if value == "" else domain(value)


def _plain(text: str) -> bool:
    return bool(text) and text.isprintable() and " " not in text


def _file(text: str) -> str:
    if not text or text.endswith("/") or not text.isprintable():
        raise ValueError(f"{text!r} is no file name")
    return text


def _at_least(read: Reader, least: int, most: int, why: str) -> Reader:
    def bounded(value: Any) -> int:
        number = int(read(value))
        if not least <= number <= most:
            raise ValueError(f"{value!r} is outside {why}")
        return number

    return bounded


deadline = _at_least(
    duration, 10, MAX_DEADLINE, "10ms to 90s; Postfix itself waits smtpd_policy_service_timeout, 100s"
)
retention = _at_least(duration, HOUR, 100 * 366 * DAY, "1h to 100 years; write 90d")
connections = _at_least(whole, 1, 1_000_000, "1 to 1000000")


def address(value: Any) -> str:
    """A listener's address in Postfix's spelling; ``systemd:NAME``; or a Twisted endpoint."""
    text = string(value).strip()
    kind, colon, rest = text.partition(":")
    if text.startswith("/"):
        raise ValueError(f"{value!r} does not say what it is; write unix:{text}")
    if not colon or not re.fullmatch(r"[a-z][a-z0-9]*", kind) or not rest or not text.isprintable():
        raise ValueError(
            f"{value!r} is no address; write inet:127.0.0.1:10047, inet:[::1]:10047 or unix:/path"
        )
    if kind == "localhost" and rest.isdigit():
        raise ValueError(f"{value!r} does not say what it is; write inet:{text}")
    if kind == "unix":
        if not rest.startswith("/") or len(rest.encode()) > MAX_SOCKET_PATH:
            raise ValueError(f"{value!r} needs an absolute path of at most {MAX_SOCKET_PATH} bytes")
        _file(rest)
    elif kind == "inet":
        split_inet(text)
    elif kind == "systemd" and not re.fullmatch(r"[!-9;-~]{1,255}", rest):
        raise ValueError(
            f"{value!r} names no socket; write systemd:NAME, the FileDescriptorName of the socket unit"
        )
    elif kind in {
        "int",
        "inte",
        "net",
        "inet4",
        "inet6",
        "ipv4",
        "ipv6",
        "unx",
        "uni",
        "sock",
        "socket",
        "system",
    }:
        raise ValueError(
            f"{kind!r} is no kind of address; write inet:127.0.0.1:10047, unix:/path or systemd:NAME"
        )
    return text


def split_inet(text: str) -> tuple[str, int]:
    """Host and port of ``inet:HOST:PORT``; the host is an IP address or ``localhost``.

    :raises ValueError: it is something else.
    """
    host, _, port = text.removeprefix("inet:").rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    try:
        if bare != "localhost":
            if (ipaddress.ip_address(bare).version == 6) != bracketed:
                raise ValueError("an IPv6 address stands in brackets")
    except ValueError:
        raise ValueError(
            f"{text!r} needs an IP address and a port; write inet:127.0.0.1:10047 or inet:[::1]:10047"
        ) from None
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{text!r} has no port from 0 to 65535 at its end; write inet:{host}:10047")
    return bare, int(port)


def _listener_direction(value: Any) -> str:
    read = one_of(ANY, SUBMISSION, MX)(value)
    return "" if read == ANY else str(read)


def mode(value: Any) -> int:
    """File permissions as chmod(1) writes them."""
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise ValueError(f'{value!r} is no mode of a file; write it in quotes, as "0660"')
    return int(value, 8)


def _label(value: Any) -> str:
    text = string(value)
    if not _plain(text) or len(text) > 128:
        raise ValueError(f"{value!r} is no label; use up to 128 printable characters without spaces")
    return text


def _group(value: Any) -> str:
    text = string(value)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", text, re.ASCII):
        raise ValueError(f"{value!r} is no group; write its name, as postfix")
    return text


def store_path(value: Any) -> str:
    """The file that an ``sqlite:`` URL names; one slash or three make it absolute."""
    text = string(value)
    if not text.startswith("sqlite:"):
        raise ValueError(
            f"{value!r} is no database that this version knows; write sqlite:///var/lib/policyd/policyd.db"
        )
    path = text.removeprefix("sqlite:")
    if path.startswith("//"):
        if not path.startswith("///"):
            raise ValueError(
                f"{value!r} names a host; write sqlite:///var/lib/policyd/policyd.db with three slashes"
            )
        path = "/" + path.lstrip("/")
    if path.startswith(":") or "?" in path:
        raise ValueError(
            f"{value!r} must be a plain file, without parameters; write sqlite:///var/lib/policyd/policyd.db"
        )
    return _file(path)


def sink(value: Any) -> str:
    """Where decisions are logged."""
    text = string(value)
    kind, _, rest = text.partition(":")
    if text == "-" or (kind == "syslog" and rest in FACILITIES):
        return text
    if kind == "syslog":
        raise ValueError(f"{rest!r} is no facility of syslog; use {', '.join(FACILITIES)}")
    if kind == "file":
        return "file:" + _file(rest)
    raise ValueError(f'{value!r} is no place for the log; write "file:/path", "syslog:mail" or "-"')


def member(value: Any) -> str:
    """A login, or ``@domain``, folded."""
    text = fold(string(value).strip())
    if not _plain(text) or text == "@" or len(text) > 320:
        raise ValueError(
            f"{value!r} is no login; write alice@example.org, or @example.org for all of a domain"
        )
    return text


def _raw(value: Any) -> Any:
    return value


def _table(of: type[Any], default: Callable[[], Any], *, help: str) -> Any:
    """A key whose value is a table of its own, or a list of them."""
    return field(default_factory=default, metadata={"read": _raw, "help": help, "key": "", "of": of})


def _networks(help: str) -> dict[str, Any]:
    """The metadata of a key that holds networks; its default must be made anew each time."""
    return {"read": networks, "help": help, "key": ""}


def _size_text(value: int) -> str:
    for name, factor in (("GB", 1000**3), ("MB", 1000**2), ("KB", 1000)):
        if value and value % factor == 0:
            return f"{value // factor}{name}"
    return f"{value}B"


@dataclass(frozen=True)
class SiteSection:
    """``[site]``: who "we" are."""

    domains: frozenset[str] = setting(set_of(domain), frozenset(), help="The site's own mail domains.")
    networks: NetworkSet = field(
        default_factory=NetworkSet,
        metadata=_networks("Client networks of the site's own; mail from them is submission."),
    )
    default_domain: str = setting(
        _default_domain, "", help="Appended to logins that have no domain; empty: nothing."
    )
    submission_contexts: frozenset[str] = setting(
        set_of(_label),
        frozenset({SUBMISSION}),
        help="Values of Postfix's policy_context that mean submission.",
    )

    def site(self) -> Site:
        """The same for the requests."""
        return Site(self.domains, self.networks, self.default_domain, self.submission_contexts)


@dataclass(frozen=True)
class Listener:
    """One member of ``[server] listen``. ``direction`` is ``""`` where both directions come in; ``mode`` and ``group`` are
    those of a UNIX socket."""

    address: str = setting(address, help="inet:HOST:PORT, unix:/PATH, systemd:NAME or a Twisted endpoint.")
    label: str = setting(_label, "", help="The name in logs; by default the address.")
    direction: str = setting(
        _listener_direction,
        "",
        key="for",
        help="The direction of all that comes in here: submission, mx, or any.",
    )
    allow_from: NetworkSet = field(
        default_factory=NetworkSet,
        metadata=_networks("Networks that may connect; required where the address is not loopback."),
    )
    mode: int = setting(mode, 0o660, help="Permissions of a UNIX socket, octal in quotes.")
    group: str = setting(
        _group, "", help="Group of a UNIX socket; by default that of its directory or of policyd."
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
        deadline, 5 * SECOND, help="Every request is answered within this time, 10ms to 90s."
    )
    fail: Mapping[str, str] = _table(
        Fail,
        lambda: dataclasses.asdict(Fail()),
        help="What is answered when no decision is possible, by direction.",
    )
    max_connections: int = setting(
        connections, 2000, help="Connections held at once; more are closed at once."
    )


@dataclass(frozen=True)
class Store:
    """``[store]``: the database. ``path`` is absolute, or relative to the working directory."""

    path: str = setting(
        store_path,
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
        list_of(sink),
        ("file:/var/log/policyd/decisions.log",),
        help='Where each decision is written: "file:PATH", "syslog:FACILITY", "-" (standard output).',
    )
    format: str = setting(
        one_of("text", "json"), "text", help="One line a decision: text (key=value) or json."
    )


@dataclass(frozen=True)
class Keep:
    """``[keep]``: how long decisions stay. ``decisions`` is in ms, the others in bytes."""

    decisions: int = setting(retention, 90 * DAY, help="Age at which decisions are removed, at least 1h.")
    max_size: int = setting(
        size, 10_000_000_000, help="Size of the database above which the oldest decisions go."
    )
    min_free: int = setting(
        size,
        1_000_000_000,
        help="Free space on the disk below which decisions go first; counts and bans never.",
    )


@dataclass(frozen=True)
class TiersSection:
    """``[tiers]``."""

    default: str = setting(
        lambda value: "" if value == "" else name(value),
        "",
        help="Tier of the accounts that no tier names; required once there are tiers, empty: such accounts have no limits.",
    )


@dataclass(frozen=True)
class TierSection:
    """One ``[tier.NAME]``."""

    limits: tuple[Limit, ...] = setting(
        list_of(limit), (), help='Limits of each account, as "20 recipients per 1h"; all of them hold.'
    )
    members: frozenset[str] = setting(
        set_of(member), frozenset(), help="Logins in this tier, or @domain for all of a domain."
    )


@dataclass(frozen=True)
class CheckCommon:
    """What every ``[[check]]`` has; its other keys are those of the check that ``use`` names."""

    use: str = setting(
        string, help="The check: one that policyd brings, or the dotted path of a Python module."
    )
    name: str = setting(name, "", help="The name in logs and for policyctl check; by default that of use.")
    direction: str = setting(
        one_of(SUBMISSION, MX, ANY), ANY, key="for", help="The mail it is for: submission, mx, or any."
    )
    mode: str = setting(
        one_of(ENFORCE, SHADOW, OFF), ENFORCE, help="enforce; shadow: decide and record, answer nothing; off."
    )
    on_error: str = setting(
        one_of("skip", "defer"), "skip", help="What its own failure means: skip it, or defer the mail."
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


@dataclass(frozen=True)
class Config:
    """A configuration without errors."""

    path: str = field(compare=False)
    site: Site
    server: Server
    store: Store
    log: Log
    keep: Keep
    tiers: Tiers
    checks: tuple[CheckSection, ...]
    #: Eight hex digits: a digest of what decides (site, tiers, checks), however it is written.
    policy_version: str


#: The sections that are one table each, in the order of the manual.
SECTIONS: dict[str, type[Any]] = {
    "site": SiteSection,
    "server": Server,
    "store": Store,
    "log": Log,
    "keep": Keep,
    "tiers": TiersSection,
}
#: How a value is written back, where its type alone does not tell.
WRITERS: dict[Reader, Callable[[Any], str]] = {
    duration: format_duration,
    deadline: format_duration,
    retention: format_duration,
    size: _size_text,
    mode: lambda value: f"{value:04o}",
    store_path: lambda value: f"sqlite://{value}" if value.startswith("/") else f"sqlite:{value}",
    _listener_direction: lambda value: value or ANY,
}
