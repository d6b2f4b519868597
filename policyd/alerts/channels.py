"""The channels that the configuration names: for each what it is told, and how to send there."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from policyd.alert import KINDS
from policyd.alertbook import Channel
from policyd.alerts import Deliver
from policyd.alerts.hook import Hook
from policyd.alerts.journal import Journal, Syslog
from policyd.alerts.mail import Mail, OwnSessions
from policyd.alerts.webhook import Webhook, read_key
from policyd.config import Alerts, AlertSection


def channels(
    alerts: Alerts, sections: tuple[AlertSection, ...], own: OwnSessions
) -> dict[Channel, tuple[object, Deliver]]:
    """Each channel with how to send there, and a mark that is another when that changes."""
    host = host_name()
    return {
        Channel(section.name, frozenset(section.on or KINDS), section.repeat_after): (
            (alerts, section.to, section.secret_file),
            _deliver(alerts, section, own, host),
        )
        for section in sections
    }


def host_name() -> str:
    """The name of this machine, as it stands in mails and messages."""
    name = socket.gethostname()
    return name if name.isascii() and name.replace("-", "").replace(".", "").isalnum() else "localhost"


def _deliver(alerts: Alerts, section: AlertSection, own: OwnSessions, host: str) -> Deliver:
    seconds = alerts.timeout / 1000
    rest = section.to.partition(":")[2]
    match section.kind:
        case "mailto":
            return Mail(rest, alerts.smtp, alerts.sender or f"policyd@{host}", host, seconds, own)
        case "https" | "http":
            return Webhook(section.to, _key(section.secret_file), host, seconds)
        case "exec":
            return Hook(rest, alerts.hook, host, seconds)
        case "syslog":
            return Syslog(rest)
    return Journal()


def _key(path: str) -> Callable[[], bytes]:
    """Reads the secret anew each time: it may be changed, and is kept nowhere."""
    if not path:
        return lambda: b""

    def read() -> bytes:
        try:
            return read_key(Path(path).read_text(encoding="ascii"))
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    return read
