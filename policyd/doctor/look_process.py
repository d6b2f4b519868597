"""Facts about the daemon's process, and the versions of what it rests on."""

from __future__ import annotations

import re
import subprocess
from importlib import metadata

from policyd.doctor.facts import Process, Software

#: Debian's names of the packages.
_PACKAGES = {"twisted": "python3-twisted", "dnspython": "python3-dnspython"}


def process(pid: int) -> Process | None:
    """What proc(5) says; ``None`` when the process is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            status = dict(line.split(":", 1) for line in file if ":" in line)
        with open(f"/proc/{pid}/limits", encoding="utf-8", errors="replace") as file:
            limits = file.read()
    except OSError:
        return None
    files = re.search(r"^Max open files\s+(\d+|unlimited)", limits, re.MULTILINE)
    return Process(
        pid,
        int(status["Uid"].split()[1]),
        int(status["CapEff"], 16),
        status.get("NoNewPrivs", "1").strip() == "1",
        int(files[1]) if files and files[1].isdigit() else 1_000_000,
    )


def software(mail_version: str) -> tuple[Software, ...]:
    """Postfix and the libraries."""
    found = [Software("postfix", mail_version)] if mail_version else []
    for name, package in _PACKAGES.items():
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        packaged = str(distribution.locate_file("")).startswith("/usr/lib/python3")
        found.append(Software(name, distribution.version, _debian(package) if packaged else ""))
    return tuple(found)


def _debian(package: str) -> str:
    try:
        done = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}", package],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
