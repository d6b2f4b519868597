"""Where logs of the past come from: files, compressed or not, in the order of their time, standard input, the journal."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO, NamedTuple

from policyd.errors import UserError
from policyd.maillog.stamps import Stamps

#: Octets that are read at once, and of one line at the most; the rest of a longer one is left out.
BLOCK = 1 << 20
LONGEST_LINE = 1 << 16
#: The mail facility of the journal, whatever Postfix's unit is called; ``journalctl`` is systemd's (248 and newer).
JOURNAL = ("journalctl", "--facility=mail", "--output=short-iso-precise", "--no-pager", "--quiet")

_KINDS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda raw: gzip.GzipFile(fileobj=raw)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


class Log(NamedTuple):
    """A file to read; ``-`` is standard input."""

    path: str
    #: Octets on disk; 0 where that is not known.
    size: int
    #: When it was last written, s since 1970.
    ends: float
    #: The time of its first line, ms; 0 where it is not known.
    begins: int


#: The number or the date with which logrotate marks a file.
_ROTATED = re.compile(r"(?:\.([0-9]{1,6})|-([0-9]{8,14}))(?:\.[a-z0-9]{1,4})?$", re.ASCII)


def in_order(paths: list[str]) -> list[Log]:
    """The files, each once, the one that begins first in front.

    :raises UserError: one is no log.
    :raises OSError: one cannot be read.
    """
    logs = []
    for path in dict.fromkeys(paths):
        if path == "-":
            logs.append(Log(path, 0, time.time(), 0))
            continue
        status = os.stat(path)
        log = Log(path, status.st_size, _ends(status.st_mtime), 0)
        if status.st_size:
            logs.append(log._replace(begins=_begins(log)))
    # Within a second, which is all that many stamps tell, the later one was written last; else its name tells.
    return sorted(logs, key=lambda log: (log.begins, log.ends, _turn(log.path)))


def _turn(path: str) -> int:
    """Where a rotated file stands among those of its name, the oldest lowest: mail.log-20261127, mail.log.2, .1, mail.log."""
    match = _ROTATED.search(path)
    if match is None:
        return 0
    number, date = match.groups()
    return -int(number) if number else int(date) - 10**15


def _ends(mtime: float) -> float:
    # A time before there was Postfix is none.
    return mtime if mtime > 915_148_800 else time.time()


def _begins(log: Log) -> int:
    stamps = Stamps(log.ends)
    with contextlib.closing(blocks(log)) as read:
        for lines, _ in read:
            for line in lines:
                if at := stamps.ms(line):
                    return at
            break
    raise UserError(
        f"{log.path} does not look like a mail log: no line in its beginning has a time that can be read "
        "('Nov 28 11:20:32 host ...', '2026-11-28T11:20:32+01:00 host ...', or journalctl's JSON)"
    )


def blocks(log: Log) -> Generator[tuple[list[bytes], int], None, None]:
    """The lines of a file in pieces, each with how many octets of it have been read so far.

    :raises UserError: it is damaged, or packed in a way that is not known here.
    :raises OSError: it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        if log.path == "-":
            raw: BinaryIO = sys.stdin.buffer
        else:
            raw = stack.enter_context(open(log.path, "rb"))
        unpacked = raw
        if log.path != "-":
            head = raw.read(6)
            raw.seek(0)
            if head.startswith(_ZSTANDARD):
                raise UserError(
                    f"{log.path} is packed with zstd; 'zstdcat {log.path} | policyctl learn -' reads it"
                )
            opener = next((opener for magic, opener in _KINDS if head.startswith(magic)), None)
            if opener is not None:
                unpacked = stack.enter_context(opener(raw))
        try:
            for lines in lines_of(unpacked):
                yield lines, 0 if log.path == "-" else raw.tell()
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise UserError(
                f"{log.path} is damaged: {error}; unpack what can still be read, and give that instead"
            ) from None


def lines_of(file: BinaryIO) -> Iterator[list[bytes]]:
    """The lines of ``file`` in pieces, without their ends; journalctl's JSON as lines of a log."""
    rest, cut, as_json = b"", False, None
    while block := file.read(BLOCK):
        if b"\0" in block:
            # What a crash leaves in a log.
            block = block.replace(b"\0", b"")
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        if cut and lines:
            lines[0], cut = b"", False
        if len(rest) > LONGEST_LINE:
            rest, cut = rest[:LONGEST_LINE], True
        elif cut:
            rest = b""
        if as_json is None and lines:
            as_json = lines[0].startswith(b"{")
        yield list(map(from_json, lines)) if as_json else lines
    if rest and not cut:
        as_json = rest.startswith(b"{") if as_json is None else as_json
        yield [from_json(rest)] if as_json else [rest]


def from_json(line: bytes) -> bytes:
    """A line of ``journalctl -o json`` as one of a log; empty when it is none."""
    if b"__REALTIME_TIMESTAMP" not in line or len(line) > LONGEST_LINE:
        return b""
    try:
        entry = json.loads(line)
        stamp = int(entry["__REALTIME_TIMESTAMP"])
        message = entry["MESSAGE"]
        text = bytes(message) if isinstance(message, list) else message.encode("utf-8", "backslashreplace")
        host, tag = (entry[key].replace(" ", "_") for key in ("_HOSTNAME", "SYSLOG_IDENTIFIER"))
        pid = entry.get("SYSLOG_PID", entry.get("_PID", 0))
        head = f"@{stamp // 1_000_000}.{stamp % 1_000_000:06} {host} {tag}[{pid}]: "
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return b""
    return head.encode("utf-8", "backslashreplace") + text


@contextlib.contextmanager
def journal() -> Iterator[Iterator[list[bytes]]]:
    """The lines of mail in this machine's journal.

    :raises UserError: there is none, or it cannot be read.
    """
    try:
        process = subprocess.Popen(
            JOURNAL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise UserError("this machine has no journalctl; name Postfix's log files instead") from None
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        try:
            yield lines_of(process.stdout)  # type: ignore[arg-type]
            said = process.stderr.read(4096).decode("utf-8", "replace").strip().split("\n")[0]
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise UserError(f"journalctl failed: {said or f'exit code {process.returncode}'}; run it as root")
