"""Facts about the room on the file systems that policyd and Postfix write to."""

from __future__ import annotations

import os
from collections.abc import Iterable

from policyd.doctor.facts import Disk


def look(wanted: Iterable[tuple[str, str, int]]) -> tuple[Disk, ...]:
    """One fact for each file system of these (directory, what for, octets that should be free)."""
    found: dict[int, Disk] = {}
    for path, what, needed in wanted:
        try:
            device, room = os.stat(path).st_dev, os.statvfs(path)
        except OSError:
            continue
        inodes = room.f_favail / room.f_files if room.f_files else 1.0
        disk = Disk(path, what, room.f_bavail * room.f_frsize, needed, inodes)
        before = found.get(device)
        if before is not None:
            path = before.path if before.needed >= needed else path  # noqa: PLW2901
            disk = Disk(path, f"{before.what} and {what}", disk.free, max(before.needed, needed), inodes)
        found[device] = disk
    return tuple(found.values())
