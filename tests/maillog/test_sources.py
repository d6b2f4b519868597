"""Where logs come from: files in any order and packing, standard input, the journal and its JSON."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policyd.errors import UserError
from policyd.maillog import sources
from policyd.maillog.stamps import Stamps

LINE = b"2026-11-%02dT11:20:32+00:00 mx postfix/qmgr[1]: 4A: removed"


def log(path: Path, day: int, pack: Callable[[bytes], bytes] = bytes) -> str:
    path.write_bytes(pack(LINE % day + b"\n" + LINE % (day + 1) + b"\n"))
    return str(path)


def read(log: sources.Log) -> list[bytes]:
    return [line for lines, _ in sources.blocks(log) for line in lines if line]


def test_files_are_read_in_the_order_of_their_time(tmp_path: Path) -> None:
    """A shell lists mail.log before mail.log.1; mails begin in one file and end in the next."""
    paths = [
        log(tmp_path / "mail.log", 20),
        log(tmp_path / "mail.log.1", 15, bz2.compress),
        log(tmp_path / "mail.log.10.gz", 1, gzip.compress),
        log(tmp_path / "mail.log.2.gz", 10, lzma.compress),
    ]
    (tmp_path / "empty").touch()
    found = sources.in_order([*paths, paths[0], str(tmp_path / "empty")])
    assert [each.path for each in found] == [paths[2], paths[3], paths[1], paths[0]]
    assert [read(each)[0] for each in found] == [LINE % day for day in (1, 10, 15, 20)]


def test_how_a_file_is_packed_is_seen_by_its_contents(tmp_path: Path) -> None:
    """A name says nothing: logrotate's delaycompress, a copy under another name."""
    path = log(tmp_path / "mail.log.1", 3, gzip.compress)
    assert read(sources.in_order([path])[0]) == [LINE % 3, LINE % 4]


def test_the_end_of_a_file_gives_the_year(tmp_path: Path) -> None:
    """Rotated files keep their time; one with a time before Postfix was born is taken for one of now."""
    path = tmp_path / "mail.log"
    path.write_bytes(b"Dec 30 11:20:32 mx postfix/qmgr[1]: 4A: removed\n")
    os.utime(path, (1_704_110_400, 1_704_110_400))  # 2024-01-01 12:00
    (found,) = sources.in_order([str(path)])
    assert 1_703_800_000_000 < found.begins < 1_704_110_400_000
    os.utime(path, (0, 0))
    assert sources.in_order([str(path)])[0].begins > 1_704_110_400_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x28\xb5\x2f\xfd1234", "zstdcat"),
        (b"\x1f\x8bnonsense", "damaged"),
        (gzip.compress(LINE % 1 * 100)[:-20], "damaged"),
        (b"[some]\ntoml = 1\n", "does not look like a mail log"),
        (b"\0\1\2" * 100, "does not look like a mail log"),
    ],
)
def test_what_is_no_log_is_said_with_its_name(tmp_path: Path, content: bytes, said: str) -> None:
    """One line that names the file and what to do; nothing is learned from half of it."""
    path = tmp_path / "odd"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        read(sources.in_order([str(path)])[0])
    assert str(path) in str(error.value)


def test_a_line_over_the_bound_is_cut_and_the_next_one_is_whole() -> None:
    """A megabyte without an end takes no memory, and does not swallow what follows."""
    data = (
        b"a" * (3 * sources.BLOCK) + b"\n" + LINE % 1 + b"\n" + b"b" * (2 * sources.BLOCK) + b"\n" + LINE % 2
    )
    found = [line for lines in sources.lines_of(io.BytesIO(data)) for line in lines]
    assert max(map(len, found)) <= sources.BLOCK + sources.LONGEST_LINE
    assert [line for line in found if line.startswith(b"2026")] == [LINE % 1, LINE % 2]


@given(
    st.lists(st.binary(max_size=50).filter(lambda line: b"\n" not in line and b"\0" not in line), max_size=50)
)
@example([b"a", b"{"])
def test_lines_are_the_lines_of_the_file(some: list[bytes]) -> None:
    """Wherever the blocks end."""
    before, sources.BLOCK = sources.BLOCK, 7
    try:
        data = b"\n".join(some)
        if data.startswith(b"{"):
            return
        found = [line for lines in sources.lines_of(io.BytesIO(data)) for line in lines]
    finally:
        sources.BLOCK = before
    assert found == (data.split(b"\n")[:-1] if data.endswith(b"\n") or not data else data.split(b"\n"))


def entry(**fields: object) -> bytes:
    whole = {
        "__REALTIME_TIMESTAMP": "1795864832123456",
        "_HOSTNAME": "mx1",
        "SYSLOG_IDENTIFIER": "postfix/smtpd",
        "SYSLOG_PID": "42",
        "MESSAGE": "4A: removed",
    }
    return json.dumps(whole | fields).encode()


@pytest.mark.parametrize("message", ["4A: removed", list(b"4A: removed")])
def test_the_journals_json_is_a_log_too(message: object) -> None:
    """journalctl -o json, where a message with odd octets is a list of numbers."""
    (line,) = [line for lines in sources.lines_of(io.BytesIO(entry(MESSAGE=message))) for line in lines]
    assert line == b"@1795864832.123456 mx1 postfix/smtpd[42]: 4A: removed"
    assert Stamps(0).ms(line) == 1_795_864_832_123


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from(["MESSAGE", "_HOSTNAME", "SYSLOG_IDENTIFIER", "__REALTIME_TIMESTAMP", "SYSLOG_PID"]),
)
def test_any_entry_of_a_journal_is_a_line_or_none(value: object, field: str) -> None:
    """Whoever may log can write any message, and any identifier."""
    line = sources.from_json(entry(**{field: value}))
    assert line == b"" or line.startswith(b"@")


@pytest.fixture
def journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a script in the place of journalctl."""

    def write(script: str) -> None:
        path = tmp_path / "journalctl"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return write


def test_the_journal_is_read_by_its_facility(journalctl: Callable[[str], None]) -> None:
    """Whatever Postfix's unit is called: journalctl is asked for the mail facility."""
    journalctl(f'echo "$@" | grep -q -- --facility=mail && echo "{(LINE % 1).decode()}"')
    with sources.journal() as pieces:
        assert [line for lines in pieces for line in lines if line] == [LINE % 1]


def test_a_journal_that_cannot_be_read_is_said(
    journalctl: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With journalctl's own word, or that there is none."""
    journalctl("echo 'No journal files were opened due to insufficient permissions.' >&2; exit 1")
    with pytest.raises(UserError, match=r"insufficient permissions.*as root"), sources.journal() as pieces:
        list(pieces)
    (tmp_path / "journalctl").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no journalctl"), sources.journal():
        pass


@pytest.mark.parametrize(
    "names",
    [("mail.log.2.gz", "mail.log.1", "mail.log"), ("mail.log-20261126", "mail.log-20261127", "mail.log")],
)
def test_files_of_one_second_come_in_the_order_of_their_rotation(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    """A mail whose lines two of them share is read in the order in which it went."""
    for name in names:
        log(tmp_path / name, 3, gzip.compress if name.endswith("gz") else bytes)
        os.utime(tmp_path / name, (1_795_000_000, 1_795_000_000))
    given = [str(tmp_path / name) for name in (names[2], names[0], names[1])]
    assert [Path(log.path).name for log in sources.in_order(given)] == list(names)
