"""Where each key of a TOML file stands, which tomllib does not tell.

The scanner reads text that :mod:`tomllib` has accepted, or refused because something is set twice; on any other text it finds
what it can and never fails. Grammar: TOML 1.0.0.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from dataclasses import dataclass, field

#: From the root to a key: names, and the index of a member within an array.
Path = tuple[str | int, ...]

#: No section is nested deeper; a key far down has the line of its ancestor.
MAX_DEPTH = 6

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r"""[ \t]*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*(\.?)""")
_PIECE = re.compile(
    r'''"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|#[^\n]*|[\[\]{},\n]|[^\S\n]+'''
    r"""|[^\s"'#\[\]{},]+|.""",
    re.DOTALL,
)


@dataclass
class Positions:
    """The line of each key, table and array member found; lines count from 1."""

    lines: dict[Path, int] = field(default_factory=dict)
    #: Arrays written as ``[[name]]``.
    arrays: set[Path] = field(default_factory=set)
    #: What is set twice: the key, its first line, its second line.
    repeated: list[tuple[Path, int, int]] = field(default_factory=list)


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._last: dict[Path, int] = {}
        self._explicit: set[Path] = set()
        self.found = Positions()

    def run(self) -> None:
        text, at = self._text, 0
        table: Path = ()
        while at < len(text):
            blank = _BLANK.match(text, at)
            at = blank.end() if blank else at
            if at == len(text):
                return
            start = at
            if text.startswith("[[", at):
                names, at = self._key(at + 2)
                if names:
                    array = self._resolve(names[:-1]) + names[-1:]
                    self._last[array] = self._last.get(array, -1) + 1
                    self.found.arrays.add(array)
                    table = (*array, self._last[array])
                    self._note(table, start)
                at = self._line_end(at)
            elif text[at] == "[":
                names, at = self._key(at + 1)
                table = self._resolve(names)
                self._note(table, start)
                at = self._line_end(at)
            else:
                names, at = self._key(at)
                path = table + names
                self._note(path, start)
                at = self._value(at + 1, path) if names and text.startswith("=", at) else self._line_end(at)

    def _line(self, at: int) -> int:
        return bisect_right(self._newlines, at - 1) + 1

    def _line_end(self, at: int) -> int:
        end = self._text.find("\n", at)
        return len(self._text) if end == -1 else end + 1

    def _key(self, at: int) -> tuple[tuple[str, ...], int]:
        """A dotted key's names, no more than matter, and where it ends."""
        names: tuple[str, ...] = ()
        while match := _KEY.match(self._text, at):
            at = match.end()
            if len(names) < MAX_DEPTH:
                names += (_unquote(match[1]),)
            if not match[2]:
                break
        return names, at

    def _resolve(self, names: tuple[str, ...]) -> Path:
        """The table that a header means: below an array of tables its newest member."""
        path: Path = ()
        for name in names:
            path += (name,)
            if path in self._last:
                path += (self._last[path],)
        return path

    def _note(self, path: Path, at: int) -> None:
        line = self._line(at)
        for length in range(1, len(path)):
            self.found.lines.setdefault(path[:length], line)
        if path in self._explicit:
            self.found.repeated.append((path, self.found.lines[path], line))
        elif path:
            self._explicit.add(path)
            self.found.lines[path] = line

    def _value(self, at: int, path: Path) -> int:
        """Step over a value; note where the members of an array start."""
        depth, index, fresh, is_array = 0, 0, True, False
        while match := _PIECE.match(self._text, at):
            piece, start, at = match[0], at, match.end()
            if piece == "\n" and depth == 0:
                break
            if piece[0] == "#" or piece.isspace():
                continue
            if piece in {"]", "}"}:
                depth -= 1
            elif piece == "," and depth == 1:
                index, fresh = index + 1, True
            else:
                if depth == 1 and is_array and fresh:
                    self.found.lines[(*path, index)] = self._line(start)
                    fresh = False
                if piece in {"[", "{"}:
                    is_array = is_array or (depth == 0 and piece == "[")
                    depth += 1
        return at


def _unquote(key: str) -> str:
    if key[0] not in "\"'":
        return key
    try:
        text = tomllib.loads(f"key = {key}")["key"]
    except ValueError:
        return key
    return str(text)


def scan(text: str) -> Positions:
    """The positions of all keys of ``text``."""
    scanner = _Scanner(text)
    scanner.run()
    return scanner.found
