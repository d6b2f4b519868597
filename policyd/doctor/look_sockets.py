"""Facts about the sockets: what is there, who may connect, whether somebody takes connections."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
from collections.abc import Iterable

from policyd.doctor.facts import Socket

#: A daemon that is alive takes a connection at once, s.
_PATIENCE = 2.0


def look(addresses: Iterable[str], mail_owner: str) -> tuple[Socket, ...]:
    """Each address, as Postfix's user would find it."""
    return tuple(_look(address, mail_owner) for address in addresses)


def _look(address: str, mail_owner: str) -> Socket:
    if address.startswith("inet:"):
        return Socket(address, answers=_answers_inet(address))
    path = address.partition(":")[2]
    try:
        found = os.stat(path)
    except OSError:
        return Socket(address, exists=False, is_socket=False, answers=False, closed_at="")
    return Socket(
        address,
        True,
        stat.S_ISSOCK(found.st_mode),
        stat.S_IMODE(found.st_mode),
        _name(found.st_uid, pwd.getpwuid),
        _name(found.st_gid, grp.getgrgid),
        _closed_at(path, mail_owner),
        _answers_unix(path) if stat.S_ISSOCK(found.st_mode) else False,
    )


def _name(number: int, look_up: object) -> str:
    with contextlib.suppress(KeyError):
        return str(look_up(number)[0])  # type: ignore[operator]
    return str(number)


def _closed_at(path: str, user: str) -> str:
    """The first part of the path that keeps the user out: a directory without x, or the socket without w."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return ""
    parts = os.path.realpath(path).split("/")
    for end in range(1, len(parts) + 1):
        part = "/".join(parts[:end]) or "/"
        try:
            found = os.stat(part)
        except OSError:
            return ""
        wanted = stat.S_IWOTH if part == os.path.realpath(path) else stat.S_IXOTH
        # smtpd(8) has its own group alone.
        shift = 6 if found.st_uid == entry.pw_uid else 3 if found.st_gid == entry.pw_gid else 0
        if entry.pw_uid != 0 and not found.st_mode & (wanted << shift):
            return path if part == os.path.realpath(path) else part
    return ""


def _answers_unix(path: str) -> bool | None:
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(_PATIENCE)
        try:
            asked.connect(path)
        except PermissionError:
            return None
        except OSError as error:
            # A full queue of those who wait is no dead socket.
            return None if error.errno == errno.EAGAIN else False
    return True


def _answers_inet(address: str) -> bool | None:
    host, _, port = address.removeprefix("inet:").rpartition(":")
    if port == "0":
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except OSError:
        return False
    return True
