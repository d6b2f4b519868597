"""From files to one tree of TOML values: reading, syntax errors, ``include``, and the place of every key."""

from __future__ import annotations

import glob
import os
import re
import stat
import tomllib
from dataclasses import dataclass, field
from typing import Any

from policyd.config.positions import Path, Positions, scan

#: Octets; more is no configuration.
MAX_FILE = 4 * 1024 * 1024
MAX_PROBLEM = 600
#: Tables of several files are joined this deep: ``[tier.NAME]`` and ``[server.fail]``.
_JOIN_DEPTH = 2

_WHERE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass
class Document:
    """All files of a configuration, joined."""

    path: str
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)
    #: Files in the order in which they were opened.
    files: list[str] = field(default_factory=list)
    #: The texts of files that are no valid TOML, and the names of those that could not be read at all.
    broken: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    _noted: list[tuple[str, str]] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """All problems, in the order of files and lines."""
        return [text for _, text in sorted(self._noted, key=lambda noted: self._rank(noted[0]))]

    def _rank(self, place: str) -> tuple[int, int]:
        name, _, line = place.rpartition(":")
        if name in self.files and line.isdigit():
            return self.files.index(name), int(line)
        return (self.files.index(place) if place in self.files else len(self.files)), 0

    def place(self, path: Path) -> str:
        """``FILE:LINE`` of the key, or of the nearest thing around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return f"{self.path}:1"

    def complain(self, path: Path, text: str) -> None:
        """Note a problem with the key ``path``."""
        self.complain_at(self.place(path), self.name(path), text)

    def complain_at(self, place: str, key: str, text: str) -> None:
        """Note a problem; one line, whatever stands in the file."""
        line = f"{place}: {key}: {text}" if key else f"{place}: {text}"
        line = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in line)
        if len(line) > MAX_PROBLEM:
            line = line[:MAX_PROBLEM] + " ..."
        if (place, line) not in self._noted:
            self._noted.append((place, line))

    def name(self, path: Path) -> str:
        """The key as the admin would call it: ``server.deadline``, ``check "quota" limits``, ``server.listen[2]``."""
        if path[:1] == ("check",) and len(path) > 1:
            check = self.data["check"][path[1]]
            name = (check.get("name") or check.get("use")) if isinstance(check, dict) else None
            title = f'check "{name}"' if isinstance(name, str) else f"check {int(path[1]) + 1}"
            return " ".join([title, *([_dotted(path[2:])] if path[2:] else [])])
        return _dotted(path)


def _dotted(path: Path) -> str:
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        else:
            text += ("." if text else "") + (part if BARE_KEY.fullmatch(part) else repr(part))
    return text


def read(path: str) -> Document:
    """Read ``path`` and what it includes. Trouble with a file stands in ``problems``, with its place and remedy."""
    document = Document(path)
    _Reader(document).file(path, ())
    return document


class _Reader:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._seen: dict[str, str] = {}
        #: Arrays written as ``[[name]]`` in the files so far.
        self._arrays: set[Path] = set()

    def file(self, name: str, chain: tuple[str, ...], asked: str = "") -> None:
        """Read one file into the document, then those it includes. ``asked`` is the place of the ``include``."""
        complain = self._document.complain_at
        if "\0" in name:
            complain(name, "", "is no file name; name another with --config")
            return
        real = os.path.realpath(name)
        if real in self._seen:
            what = "is included by itself" if real in chain else f"is included already, at {self._seen[real]}"
            complain(asked, "include", f"{name} {what}; include each file once")
            return
        self._seen[real] = asked or "the start"
        self._document.files.append(name)
        text = self._text(name, asked)
        if text is None:
            self._document.unread.append(name)
            return
        data = self._parse(name, text)
        if data is None:
            self._document.broken.append(text)
            return
        positions = scan(text)
        patterns = data.pop("include", [])
        self._join(data, positions, name)
        place = f"{name}:{positions.lines.get(('include',), 1)}"
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            complain(place, "include", 'must be a list of file names; write include = ["conf.d/*.toml"]')
            return
        for pattern in patterns:
            for found in self._matching(name, pattern, place):
                self.file(found, (*chain, real), place)

    def _matching(self, name: str, pattern: str, place: str) -> list[str]:
        base = os.path.dirname(name)
        if not pattern or not pattern.isprintable():
            self._document.complain_at(place, "include", f"{pattern!r} is no file name; write conf.d/*.toml")
            return []
        if not glob.has_magic(pattern):
            return [os.path.join(base, pattern)]
        return [os.path.join(base, found) for found in sorted(glob.glob(pattern, root_dir=base or None))]

    def _text(self, name: str, asked: str) -> str | None:
        def complain(place: str, text: str) -> None:
            self._document.complain_at(place, "", text + (f" (included at {asked})" if asked else ""))

        try:
            with open(name, "rb", opener=_without_waiting) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    complain(name, "is a pipe or a device; " + _remedy(asked, "name a file with --config"))
                    return None
                data = file.read(MAX_FILE + 1)
        except FileNotFoundError:
            complain(
                name, "there is no such file; " + _remedy(asked, "create it, or name another with --config")
            )
        except PermissionError:
            complain(
                name,
                "no permission to read it; run as root or as its owner, or correct the rights of file and directory",
            )
        except IsADirectoryError:
            complain(name, "is a directory; " + _remedy(asked, "name the file in it with --config"))
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            complain(
                name, f"cannot be read: {reason}; " + _remedy(asked, "name a readable file with --config")
            )
        else:
            return self._decoded(name, data)
        return None

    def _decoded(self, name: str, data: bytes) -> str | None:
        complain = self._document.complain_at
        if len(data) > MAX_FILE:
            complain(
                name, "", f"is larger than {MAX_FILE} bytes and so no configuration; name the right file"
            )
            return None
        if (at := data.find(b"\0")) != -1:
            complain(
                f"{name}:{data.count(10, 0, at) + 1}",
                "",
                "holds a NUL byte and so is no text; restore the file",
            )
            return None
        try:
            return data.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            # The position counts from behind a byte order mark, which holds no line end.
            line = error.object.count(10, 0, error.start) + 1
            complain(f"{name}:{line}", "", f"is not UTF-8 ({error.reason}); save the file as UTF-8")
            return None

    def _parse(self, name: str, text: str) -> dict[str, Any] | None:
        complain = self._document.complain_at
        try:
            return tomllib.loads(text)
        except RecursionError:
            complain(name, "", "is nested too deeply; write fewer brackets within brackets")
        except ValueError as error:
            where = _WHERE.search(str(error))
            reason = str(error)[: where.start()] if where else str(error)
            last = text.rstrip().count("\n") + 1
            line = int(where[1]) if where and where[1] else last
            twice = [again for again in scan(text).repeated if again[2] <= line]
            if reason.startswith(("Cannot overwrite", "Cannot declare", "Cannot mutate")) and twice:
                path, first, second = twice[-1]
                key = "[" + _dotted(path) + "]" if "declare" in reason else _dotted(path)
                complain(f"{name}:{second}", key, f"is already set at {name}:{first}; keep one of them")
            else:
                complain(
                    f"{name}:{line}", "", f"no valid TOML: {reason}; correct the line, or the one before it"
                )
        return None

    def _join(self, data: dict[str, Any], positions: Positions, name: str) -> None:
        """Take the tables of a file into the document; what is set already is a problem."""
        document = self._document
        moved: dict[Path, int] = {}
        places = {path: f"{name}:{line}" for path, line in positions.lines.items()}

        def place(path: Path) -> str:
            return next(
                (places[path[:n]] for n in range(len(path), 0, -1) if path[:n] in places), f"{name}:1"
            )

        def join(into: dict[str, Any], table: dict[str, Any], at: Path) -> None:
            for key, value in table.items():
                path = (*at, key)
                if key not in into:
                    into[key] = value
                    continue
                present = into[key]
                if isinstance(present, dict) and isinstance(value, dict) and len(path) <= _JOIN_DEPTH:
                    join(present, value, path)
                elif isinstance(present, list) and path in positions.arrays and path in self._arrays:
                    moved[path] = len(present)
                    present.extend(value)
                else:
                    text = f"is already set at {document.place(path)}; keep one of them"
                    document.complain_at(place(path), document.name(path), text)

        join(document.data, data, ())
        self._arrays |= positions.arrays
        for path, where in places.items():
            for array, offset in moved.items():
                if path[: len(array)] == array and len(path) > len(array):
                    path = (*array, int(path[len(array)]) + offset, *path[len(array) + 1 :])  # noqa: PLW2901
            document.places.setdefault(path, where)


def _without_waiting(path: str, flags: int) -> int:
    """Open a file, and no pipe in its place makes a daemon wait that reloads."""
    return os.open(path, flags | os.O_NONBLOCK)


def _remedy(asked: str, text: str) -> str:
    return "correct the include" if asked else text
