"""An alert for programs: the JSON that webhooks and commands are given. Its form is part of policyd.toml(5)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from policyd.alert import Alert
from policyd.alerts.text import words


def payload(alert: Alert, host: str) -> dict[str, Any]:
    """The JSON object. ``type``, ``timestamp`` and ``data`` are those of Standard Webhooks; ``title`` and ``text`` are for
    receivers that only show something."""
    said = words(alert)
    return {
        "type": f"policyd.{alert.kind}.{'resolved' if alert.resolved else 'began'}",
        "timestamp": datetime.fromtimestamp(alert.wall_at / 1000, UTC).isoformat(timespec="milliseconds"),
        "title": said.title,
        "text": said.text(),
        "data": {
            "id": alert.uid,
            "host": host,
            "channel": alert.channel,
            "kind": alert.kind,
            "subject": alert.subject,
            "resolved": alert.resolved,
            "count": alert.count,
            "facts": alert.facts,
            "commands": [{"for": purpose, "command": command} for purpose, command in said.commands],
        },
    }


def encoded(alert: Alert, host: str) -> bytes:
    """The same as it is sent: ASCII, whatever an account or a sender is called."""
    return json.dumps(payload(alert, host), ensure_ascii=True).encode("ascii")
