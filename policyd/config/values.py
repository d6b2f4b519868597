"""How the values of the configuration are read, beyond what :mod:`policyd.settings` offers, and how they are written back.

Each reader turns a TOML value into the typed one; its :class:`ValueError` says what is wrong and what to write instead.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from policyd import detectors
from policyd.alert import KINDS
from policyd.condition import Condition, parse_condition
from policyd.dns.nameservers import parse_nameserver, write_nameserver
from policyd.match import address_key, domain_key, fold
from policyd.request import ANY_VERIFIED, MX, SUBMISSION
from policyd.sentence import DISTINCT, Sentence, parse_sentence
from policyd.settings import Reader, delay, duration, list_of, one_of, size, string, whole
from policyd.suspending import PERMANENT
from policyd.tiers import Promote
from policyd.units import DAY, HOUR, MINUTE, SECOND, format_duration

ANY = "any"
#: The loop looks at what is due ten times a second, and a disk may take its time.
MIN_DEADLINE = SECOND
#: Postfix gives up after smtpd_policy_service_timeout, 100 s unless set (postconf(5)).
MAX_DEADLINE = 90 * SECOND
#: sockaddr_un holds 108 octets with the final NUL (unix(7)).
MAX_SOCKET_PATH = 107

NAME = re.compile(r"[a-z0-9_-]+")
#: From MD5 to SHA-512 (postconf(5), smtpd_tls_fingerprint_digest).
_FINGERPRINT = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){15,63}")
#: What cannot stand in a domain's name, the wildcard above all.
_NO_DOMAIN = re.compile(r"[^a-z0-9._\x80-\U0010ffff-]")
FACILITIES = ("mail", "daemon", "user", "auth", "authpriv", *(f"local{number}" for number in range(8)))


def name(value: Any) -> str:
    """A name of a check or tier."""
    if not NAME.fullmatch(string(value)):
        raise ValueError(f"{value!r} is no name; use small letters, digits, - and _")
    return str(value)


def domain(value: Any) -> str:
    """A domain of ours, folded."""
    text = fold(string(value).strip()).rstrip(".")
    if not _plain(text) or text.startswith(".") or _NO_DOMAIN.search(text) or len(text) > 255:
        raise ValueError(f"{value!r} is no domain; write example.org")
    return domain_key(text)


def domain_or_none(value: Any) -> str:
    """A domain, or "" for none."""
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
    duration, MIN_DEADLINE, MAX_DEADLINE, "1s to 90s; Postfix itself waits smtpd_policy_service_timeout, 100s"
)
retention = _at_least(duration, HOUR, 100 * 366 * DAY, "1h to 100 years; write 90d")
dns_timeout = _at_least(duration, 100, 30 * SECOND, "100ms to 30s; a mail waits for it")
cache_size = _at_least(size, 1_000_000, 1_000_000_000_000, "1MB to 1000GB; write 32MB")
connections = _at_least(whole, 1, 1_000_000, "1 to 1000000")
memory = _at_least(whole, 1_000, 100_000_000, "1000 to 100000000")
alert_timeout = _at_least(duration, SECOND, MINUTE, "1s to 60s; write 10s")
alert_repeat = _at_least(duration, MINUTE, 366 * DAY, "1m to 366d; write 6h")
not_asked = _at_least(
    duration, MINUTE, 30 * DAY, '1m to 30d; leave "not-asked" out of on to hear nothing of it'
)


def condition(value: Any) -> Condition:
    """A condition on what a check before found."""
    return parse_condition(string(value))


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


def nameservers(value: Any) -> tuple[str, ...]:
    """A list of nameservers, each with its port, none of them twice."""
    found: list[str] = []
    for member in list_of(string)(value):
        text = write_nameserver(*parse_nameserver(member.strip()))
        if text in found:
            raise ValueError(f"{text} is listed twice; keep one of them")
        found.append(text)
    return tuple(found)


def listener_direction(value: Any) -> str:
    """The direction of a listener; any is the empty one."""
    read = one_of(ANY, SUBMISSION, MX)(value)
    return "" if read == ANY else str(read)


def mode(value: Any) -> int:
    """File permissions as chmod(1) writes them."""
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise ValueError(f'{value!r} is no mode of a file; write it in quotes, as "0660"')
    return int(value, 8)


def label(value: Any) -> str:
    """A text without spaces, as it stands in logs."""
    text = string(value)
    if not _plain(text) or len(text) > 128:
        raise ValueError(f"{value!r} is no label; use up to 128 printable characters without spaces")
    return text


def group(value: Any) -> str:
    """The name of a group of the system."""
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
    try:
        return os.path.abspath(_file(path))
    except OSError as error:
        raise ValueError(f"{value!r}: the working directory is gone ({error.strerror})") from None


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
    return address_key(text)


def certificate(value: Any) -> str:
    """The fingerprint of a certificate or of its public key, folded; or ``any``."""
    text = fold(string(value).strip())
    if text != ANY_VERIFIED and not _FINGERPRINT.fullmatch(text):
        raise ValueError(
            f'{value!r} is no fingerprint; write it as Postfix logs it, with colons, or "any" for each that verifies'
        )
    return text


def file_or_none(value: Any) -> str:
    """An absolute path of a file, or nothing."""
    return _file(string(value)) if value != "" else ""


def sentence(value: Any) -> Sentence:
    """``when`` of a detector."""
    read = parse_sentence(string(value))
    if read.kind == DISTINCT and read.noun not in detectors.names():
        raise ValueError(f"policyd cannot count {read.noun!r}; it counts {', '.join(detectors.names())}")
    return read


def promote(value: Any) -> Promote | None:
    """``promote`` of a tier; ``{}`` for none."""
    if value == {}:
        return None
    known = {"to", "after", "min_messages"}
    if not isinstance(value, dict) or not {"to", "after"} <= value.keys() or value.keys() - known:
        raise ValueError('must be a table { to = "NAME", after = "14d", min_messages = 10 }')
    after = duration(value["after"])
    if not after:
        raise ValueError("after must be longer than nothing")
    return Promote(name(value["to"]), after, whole(value.get("min_messages", Promote.min_messages)))


def _promote_text(value: Promote | None) -> dict[str, Any]:
    if value is None:
        return {}
    return {"to": value.to, "after": format_duration(value.after), "min_messages": value.min_messages}


def ladder(value: Any) -> tuple[int, ...]:
    """The steps of ``[suspend] ladder`` in ms; ``permanent``, which stands last, is 0."""
    if not isinstance(value, list) or not value:
        raise ValueError('must be a list of at least one step, such as ["1h", "24h", "permanent"]')
    steps = tuple(PERMANENT if step == "permanent" else duration(step) for step in value)
    timed = steps[:-1] if value[-1] == "permanent" else steps
    if not all(timed) or list(timed) != sorted(timed):
        raise ValueError(
            'each step is longer than nothing and than the one before, and "permanent" stands last'
        )
    return steps


def alert_kind(value: Any) -> str:
    """What an alert can be about."""
    text = string(value)
    if text not in KINDS:
        near = difflib.get_close_matches(text, KINDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"write one of {', '.join(KINDS)}"
        raise ValueError(f"{value!r} is nothing that happens; {hint}")
    return text


def alert_target(value: Any) -> str:
    """Where alerts go: ``mailto:``, ``https:``, ``exec:``, ``syslog:``, ``journal``."""
    text = string(value).strip()
    kind, _, rest = text.partition(":")
    kind = kind.lower()
    if text == "journal" or (kind == "syslog" and rest in FACILITIES):
        return text
    if kind == "syslog":
        raise ValueError(f"{rest!r} is no facility of syslog; use {', '.join(FACILITIES)}")
    if kind == "mailto":
        return f"mailto:{_mail_address(rest)}"
    if kind == "exec":
        if not rest.startswith("/") or rest.endswith("/") or not rest.isprintable():
            raise ValueError(
                f"{value!r} needs the absolute path of a program, without arguments; write exec:/usr/local/bin/page"
            )
        return f"exec:{rest}"
    if kind in {"https", "http"}:
        return _url(text)
    raise ValueError(
        f"{value!r} is no place for alerts; write mailto:root, https://..., exec:/path, syslog:mail or journal"
    )


def _mail_address(text: str) -> str:
    local, at, domain_ = text.rpartition("@") if "@" in text else (text, "", "")
    if (
        not re.fullmatch(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}", local)
        or local[0] in ".-"
        or (at and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,253})", domain_))
    ):
        raise ValueError(f"{text!r} is no mail address; write mailto:root or mailto:admin@example.org")
    return text


def _url(text: str) -> str:
    wrong = f"{_hidden(text)!r} is no URL that can be posted to"
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"{wrong}; write what is not ASCII, and spaces, as %20")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"{wrong}: {error}; write https://example.org/path") from None
    if not host or parts.fragment or parts.username is not None or parts.password is not None:
        raise ValueError(f"{wrong}; write https://example.org/path, without user, password and #")
    if parts.scheme.lower() == "http" and not _is_loopback(host):
        raise ValueError(
            f"{wrong}: everybody on the way could read it; write https://, http:// is for 127.0.0.1 and ::1"
        )
    return text


def _hidden(url: str) -> str:
    """A URL without what may be secret in it."""
    return url.partition("?")[0][:40] + "..." if len(url) > 40 or "?" in url else url


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def smtp_server(value: Any) -> tuple[str, int]:
    """Host and port of a mail server."""
    text = string(value).strip()
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if (
        not re.fullmatch(r"[A-Za-z0-9.:_-]+", bare)
        or not re.fullmatch(r"[0-9]{1,5}", port)
        or not 0 < int(port) < 65536
    ):
        raise ValueError(f"{value!r} is no mail server; write host and port, as 127.0.0.1:25")
    if (":" in bare) != (bare != host):
        raise ValueError(f"{value!r} is no mail server; an IPv6 address stands in brackets, as [::1]:25")
    return bare, int(port)


def sender_address(value: Any) -> str:
    """A mail address, or "" for one that is made up."""
    return "" if value == "" else _mail_address(string(value).strip())


def absolute_file(value: Any) -> str:
    """The absolute path of a file."""
    text = _file(string(value))
    if not text.startswith("/"):
        raise ValueError(f"{value!r} is no absolute path; begin it with /")
    return text


def absolute_file_or_none(value: Any) -> str:
    """The absolute path of a file, or "" for none."""
    return "" if value == "" else absolute_file(value)


def label_or_none(value: Any) -> str:
    """A label, or "" for one that is made up."""
    return "" if value == "" else label(value)


def _server_text(value: tuple[str, int]) -> str:
    host, port = value
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def size_text(value: int) -> str:
    """The shortest exact text of a size."""
    for name, factor in (("GB", 1000**3), ("MB", 1000**2), ("KB", 1000)):
        if value and value % factor == 0:
            return f"{value // factor}{name}"
    return f"{value}B"


#: How a value is written back, where its type alone does not tell.
WRITERS: dict[Reader, Callable[[Any], Any]] = {
    duration: format_duration,
    delay: format_duration,
    deadline: format_duration,
    retention: format_duration,
    dns_timeout: format_duration,
    alert_timeout: format_duration,
    alert_repeat: format_duration,
    not_asked: format_duration,
    smtp_server: _server_text,
    cache_size: size_text,
    size: size_text,
    mode: lambda value: f"{value:04o}",
    sentence: str,
    promote: _promote_text,
    ladder: lambda value: [format_duration(step) if step else "permanent" for step in value],
    store_path: lambda value: f"sqlite://{value}" if value.startswith("/") else f"sqlite:{value}",
    listener_direction: lambda value: value or ANY,
}
