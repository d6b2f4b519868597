"""Where keys stand: the scanner against tomllib's understanding of the same text."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from policyd.config.positions import Path, scan

TEXT = """\
# a comment with [brackets] and "quotes
top = 1
[site]
domains = [
  "a.example",   # ] is no end here
  "b.example",
]
"quoted key" = QQQ
[not.a.table]
x = 1
QQQ
after = 'it'
[server]
fail.mx = "dunno"
listen = [ "one", { address = "t}wo" }
    , "three" ]
literal = '''
# "
'''
[[check]]
use = "a"
[check.sub]
deep = 1

[[check]]   # the second
use = "b"
limits = [[1, 2],
  [3]]
""".replace("QQQ", '"' * 3)


def test_each_key_has_its_line() -> None:
    """Strings, comments, arrays and dotted keys over several lines do not move what comes after them."""
    tomllib.loads(TEXT)
    lines = scan(TEXT).lines
    expected: dict[Path, int] = {
        ("top",): 2,
        ("site",): 3,
        ("site", "domains"): 4,
        ("site", "domains", 0): 5,
        ("site", "domains", 1): 6,
        ("site", "quoted key"): 8,
        ("site", "after"): 12,
        ("server",): 13,
        ("server", "fail"): 14,
        ("server", "fail", "mx"): 14,
        ("server", "listen"): 15,
        ("server", "listen", 0): 15,
        ("server", "listen", 1): 15,
        ("server", "listen", 2): 16,
        ("server", "literal"): 17,
        ("check",): 20,
        ("check", 0): 20,
        ("check", 0, "use"): 21,
        ("check", 0, "sub"): 22,
        ("check", 0, "sub", "deep"): 23,
        ("check", 1): 25,
        ("check", 1, "use"): 26,
        ("check", 1, "limits"): 27,
        ("check", 1, "limits", 0): 27,
        ("check", 1, "limits", 1): 28,
    }
    assert lines == expected
    assert scan(TEXT).arrays == {("check",)}


def test_what_is_set_twice_is_found_with_both_lines() -> None:
    """tomllib names the second place only; the admin needs both."""
    assert scan("[a]\nx = 1\ny = 2\nx = 3\n[a]\n").repeated == [(("a", "x"), 2, 4), (("a",), 1, 5)]


bare = st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True)
hard_text = st.text(st.sampled_from("ab\"'#[]{}=,.\\ \n\té"), max_size=12)


def basic(text: str) -> str:
    return (
        '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'
    )


def multi(text: str) -> str:
    return '"""' + text.replace("\\", "\\\\").replace('"', '\\"') + '"""'


def literal(text: str) -> str:
    return "'''\n" + text.replace("'", "x") + "'''"


scalars = st.one_of(
    hard_text.map(basic),
    hard_text.map(multi),
    hard_text.map(literal),
    st.sampled_from(["1", "true", "1.5", "2026-01-02"]),
)
gaps = st.sampled_from(["", " ", "\n", " # ]\n", "\n\n  # \"'{\n"])
keys = st.one_of(bare, hard_text.map(basic))


@st.composite
def arrays(draw: st.DrawFn) -> tuple[str, list[int]]:
    """The text of an array, and behind how many line ends each member starts."""
    text, starts = "[", []
    for number in range(draw(st.integers(0, 4))):
        text += ("," if number else "") + draw(gaps)
        starts.append(text.count("\n"))
        text += draw(st.one_of(scalars, st.just("[ 1, [2],\n ]"), st.just('{ a = "}", b = [1, 2] }'))) + draw(
            gaps
        )
    return text + draw(gaps) + "]", starts


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[Path, int]]:
    """A valid TOML text, and the line of everything in it."""
    text = ""
    expected: dict[Path, int] = {}
    counts: dict[str, int] = {}
    used: set[Path] = set()
    table: Path = ()

    def line() -> int:
        return text.count("\n") + 1

    for _ in range(draw(st.integers(0, 12))):
        text += draw(st.sampled_from(["", "\n", "# [comment]\n", "  "]))
        kind = draw(st.sampled_from(["table", "array", "key", "key", "key", "list"]))
        key = draw(keys)
        name = str(next(iter(tomllib.loads(f"{key} = 1"))))
        if kind == "table":
            path: Path = ("t", name)
            if path in used:
                continue
            used.add(path)
            expected.setdefault(("t",), line())
            expected[path] = line()
            text += f"[t.{key}]"
            table = path
        elif kind == "array":
            counts[name] = counts.get(name, -1) + 1
            table = ("a", name, counts[name])
            for length in (1, 2):
                expected.setdefault(table[:length], line())
            expected[table] = line()
            text += f"[[ a . {key} ]]"
        else:
            path = (*table, "k" + name)
            if path in used:
                continue
            used.add(path)
            expected[path] = line()
            key = basic("k" + name)
            if kind == "key":
                text += f"{key} = {draw(scalars)}"
            else:
                value, starts = draw(arrays())
                for index, start in enumerate(starts):
                    expected[(*path, index)] = line() + start
                text += f"{key}={value}"
        text += draw(st.sampled_from(["\n", " # end\n", "\t\n"]))
    return text, expected


@given(documents())
def test_positions_are_right_in_any_valid_text(document: tuple[str, dict[Path, int]]) -> None:
    """Whatever the text holds, each key, table and member of an array is found where it was put, and nothing else."""
    text, expected = document
    tomllib.loads(text)
    found = scan(text)
    assert found.lines == expected
    assert found.repeated == []


def depth_first(value: Any, path: Path) -> list[Path]:
    if isinstance(value, dict):
        return [path, *(deep for key, member in value.items() for deep in depth_first(member, (*path, key)))]
    return [path]


@given(st.text(st.sampled_from("ab.=\"'[]{},#\\\n 1"), max_size=60))
def test_the_scanner_never_fails(text: str) -> None:
    """Also on what is no TOML it comes to an end; on what is, it finds every table's keys that are not inline."""
    found = scan(text)
    try:
        data = tomllib.loads(text)
    except ValueError:
        return
    assert {path[:1] for path in depth_first(data, ()) if path} <= {path[:1] for path in found.lines}
