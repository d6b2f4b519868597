"""The configuration as text again, and texts that are no configuration."""

from __future__ import annotations

import dataclasses
import datetime
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd import checks
from policyd.alert import KINDS
from policyd.config import documented_keys, load, show
from policyd.config.show import toml
from policyd.errors import ConfigError
from policyd.settings import setting
from policyd.units import UNITS, format_duration

File = Callable[[bytes], Path]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> File:
    path = tmp_path_factory.mktemp("config") / "policyd.toml"

    def write(content: bytes) -> Path:
        path.write_bytes(content)
        return path

    return write


labels = st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True)
domains = st.from_regex(r"[a-zA-Z0-9]{1,8}\.(example|EXAMPLE|test)", fullmatch=True)
octets = st.integers(0, 255)
networks = st.one_of(
    st.tuples(octets, octets, octets).map(lambda o: f"{o[0]}.{o[1]}.{o[2]}.0/24"),
    st.integers(0, 2**32 - 1).map(lambda n: f"2001:db8:{n >> 16:x}:{n & 0xFFFF:x}::/64"),
)
durations = st.integers(3_600_000, 366 * 86_400_000).map(format_duration)
limits = st.one_of(
    st.builds("{} {} per {}".format, st.integers(0, 2**53), st.sampled_from(UNITS), durations),
    st.builds(
        "{}{} per {}".format, st.integers(0, 9999), st.sampled_from(["KB", "MB", "GiB", "B"]), durations
    ),
)
words = st.text(
    st.characters(min_codepoint=32, blacklist_categories=("Cs", "Cc", "Zl", "Zp", "Cn", "Co", "Cf", "Zs")),
    min_size=1,
    max_size=9,
)
file_names = words.filter(
    lambda text: "?" not in text and not text.endswith("/") and not text.startswith((":", "/"))
)


def some(members: st.SearchStrategy[Any], **extra: Any) -> st.SearchStrategy[list[Any]]:
    return st.lists(members, max_size=3, **extra)


def table(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A table with any of the keys."""
    return st.fixed_dictionaries({}, optional=keys)


sockets = st.fixed_dictionaries(
    {"address": file_names.map("unix:/{}".format)},
    optional={
        "for": st.sampled_from(["any", "mx", "submission"]),
        "mode": st.sampled_from(["0660", "600", "0777"]),
        "group": st.just("postfix"),
    },
)
ports = st.integers(1, 65535)
inets = st.one_of(
    ports.map("inet:127.0.0.1:{}".format),
    ports.map("inet:[::1]:{}".format),
    st.fixed_dictionaries(
        {
            "address": ports.map("inet:192.0.2.1:{}".format),
            "allow_from": st.lists(networks, min_size=1, max_size=3),
        }
    ),
    labels.map("systemd:{}".format),
    ports.map("tcp:{}:interface=127.0.0.1".format),
)


def address_of(listener: Any) -> str:
    return str(listener["address"] if isinstance(listener, dict) else listener)


common: dict[str, st.SearchStrategy[Any]] = {
    "mode": st.sampled_from(["enforce", "shadow", "off"]),
    "on_error": st.sampled_from(["skip", "defer"]),
    "for": st.sampled_from(["any", "mx", "submission"]),
}
addresses = st.builds("{}@{}".format, labels, domains)
a_check = st.one_of(
    st.fixed_dictionaries(
        {"use": st.just("allow")},
        optional={
            **common,
            "senders": some(st.one_of(st.just("<>"), addresses)),
            "domains": some(domains),
            "clients": some(networks),
        },
    ),
    st.fixed_dictionaries(
        {"use": st.just("bans")},
        optional={
            **common,
            "never": some(st.one_of(addresses, networks)),
            "text": labels.map("No {{kind}}; {} {{ref}}".format),
        },
    ),
    st.fixed_dictionaries(
        {"use": st.just("quota")},
        optional={**common, "limits": some(limits), "per": st.sampled_from(["user", "client", "server"])},
    ),
)
tier = table(limits=some(limits), members=some(addresses))


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Any valid configuration, as TOML data."""
    data: dict[str, Any] = draw(
        table(
            site=table(
                domains=some(domains),
                networks=some(networks),
                default_domain=domains,
                submission_contexts=some(labels),
                certificates=some(st.sampled_from(["any", ":".join(["ab"] * 16), ":".join(["0F"] * 32)])),
            ),
            server=table(
                listen=st.lists(st.one_of(sockets, inets), min_size=1, max_size=4, unique_by=address_of),
                deadline=st.integers(1_000, 90_000).map(format_duration),
                max_connections=st.integers(1, 10**6),
                fail=table(submission=st.sampled_from(["defer", "dunno", "reject"]), mx=st.just("defer")),
            ),
            store=table(
                url=st.one_of(file_names.map("sqlite:{}".format), file_names.map("sqlite:///{}".format)),
                durability=st.sampled_from(["full", "normal"]),
                memory_backlog=st.integers(0, 10**6),
            ),
            log=table(
                decisions=some(
                    st.one_of(file_names.map("file:{}".format), st.just("-"), st.just("syslog:local3"))
                ),
                format=st.sampled_from(["text", "json"]),
            ),
            keep=table(
                decisions=durations,
                max_size=st.sampled_from(["10GB", "1GiB", "12345"]),
                min_free=st.just("0KB"),
            ),
            dns=table(
                nameservers=st.sampled_from([[], ["127.0.0.1"], ["[::1]:5353", "192.0.2.1:53"]]),
                timeout=st.sampled_from(["100ms", "2s", "30s"]),
                cache_size=st.sampled_from(["1MB", "1GiB"]),
            ),
            alerts=table(
                smtp=st.sampled_from(["127.0.0.1:25", "[::1]:2525", "localhost:26"]),
                sender=st.sampled_from(["", "policyd@example.org"]),
                timeout=st.sampled_from(["1s", "60s"]),
                hook=st.just("/run/hook"),
                not_asked=st.sampled_from(["1m", "30d"]),
            ),
        )
    )
    tiers = draw(st.dictionaries(labels, tier, max_size=3))
    seen: set[str] = set()
    for one in tiers.values():
        if "members" in one:
            one["members"] = [name for name in one["members"] if name.lower() not in seen]
            seen |= {name.lower() for name in one["members"]}
        one.pop("limits", None) if len(one.get("limits", [])) > 1 else None
    if tiers:
        data["tier"] = tiers
        data["tiers"] = {"default": draw(st.sampled_from([*tiers, ""]))}
    targets = [
        "mailto:root",
        "https://example.org/a?b=%20",
        "http://127.0.0.1:1/",
        "exec:/bin/page",
        "syslog:mail",
        "journal",
    ]
    data["alert"] = draw(
        st.lists(
            st.fixed_dictionaries(
                {"to": st.sampled_from(targets)},
                optional={
                    "on": st.lists(st.sampled_from(list(KINDS)), max_size=3),
                    "repeat_after": st.sampled_from(["1m", "6h"]),
                },
            ),
            max_size=3,
            unique_by=lambda each: each["to"],
        )
    )
    data["check"] = [
        {**check, "name": name}
        for name, check in zip(
            draw(st.lists(labels, max_size=4, unique=True)),
            draw(st.lists(a_check, min_size=4, max_size=4)),
            strict=False,
        )
    ]
    return data


def dump(data: dict[str, Any]) -> str:
    """TOML data as text, sections as inline tables: the shape that the shown text does not have."""
    return "\n".join(f"{key} = {toml(value)}" for key, value in data.items())


@given(data=configurations())
def test_what_is_shown_loads_to_the_same(file: File, data: dict[str, Any]) -> None:
    """`policyctl config show` loses nothing and changes nothing, and shows every default."""
    first = load(file(dump(data).encode()), checks.options_of)
    shown = show(first)
    second = load(file(shown.encode()), checks.options_of)
    assert second == first
    assert second.policy_version == first.policy_version
    assert show(second) == shown
    sections = tomllib.loads(shown)
    for section, key, _, _ in documented_keys(checks.options_of, []):
        if section in {"site", "server", "store", "log", "keep", "dns", "alerts"}:
            assert key in sections[section]


toml_like = st.lists(
    st.sampled_from(
        [
            *(
                "[site]",
                "[server]",
                "[[check]]",
                "[tier.x]",
                "[tiers]",
                "[server.fail]",
                "[store]",
                "[[server.listen]]",
            ),
            *(
                "domains",
                "listen",
                "use",
                "limits",
                "default",
                "fail",
                "url",
                "name",
                "include",
                "mode",
                "address",
                "x.y",
            ),
            *(
                " = ",
                "=",
                "[",
                "]",
                "{",
                "}",
                ",",
                ".",
                "\n",
                "\n",
                "\n",
                "#",
                '"',
                "'",
                '"""',
                "'''",
                "\\",
                "\r\n",
                "\t",
            ),
            *(
                '"quota"',
                '"bans"',
                '"x"',
                '"1 messages per 1h"',
                '["a"]',
                "1",
                "true",
                "1.5",
                "2026-01-01",
                "{}",
                "[]",
                "nan",
            ),
            *(
                '"inet:127.0.0.1:1"',
                '"inet:1"',
                '"unix:/x"',
                "{ address = 'unix:/x' }",
                '"sqlite:x"',
                '"\\u0000"',
                "\ufeff",
            ),
        ]
    ),
    max_size=40,
).map("".join)


def problems_of(path: Path) -> tuple[str, ...]:
    """The problems; none when it loads. Any other error goes on."""
    try:
        load(path, checks.options_of)
    except ConfigError as error:
        return error.problems or ("",)
    return ()


@given(
    content=st.one_of(
        toml_like.map(str.encode), st.binary(max_size=200), st.text(max_size=100).map(str.encode)
    )
)
def test_junk_raises_nothing_but_config_errors(file: File, content: bytes) -> None:
    """Whatever is in the file: it loads, or each problem is one printable line that begins with the file's name."""
    path = file(content)
    for problem in problems_of(path):
        assert problem.isprintable()
        assert problem.startswith(str(path.parent))


values = st.recursive(
    st.one_of(
        st.integers(-(2**60), 2**60),
        st.booleans(),
        st.floats(allow_nan=False),
        st.text(max_size=8),
        st.dates(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
any_key = st.sampled_from(
    sorted({key for _, key, _, _ in documented_keys(checks.options_of, checks.names())} - {"include"})
)
any_section = st.sampled_from(
    ["site", "server", "store", "log", "keep", "dns", "alerts", "alert", "tiers", "tier", "check"]
)


@given(
    data=st.dictionaries(
        any_section,
        st.one_of(
            values, st.dictionaries(any_key, values, max_size=4), st.lists(st.dictionaries(any_key, values))
        ),
        max_size=4,
    )
)
def test_a_value_of_any_type_is_refused_in_words(file: File, data: dict[str, Any]) -> None:
    """Valid TOML with the right keys and any values: an error in words or a configuration, never a traceback."""
    assert all(problem and problem.isprintable() for problem in problems_of(file(dump(data).encode())))


@given(st.dictionaries(st.text(max_size=6), values, max_size=4))
def test_values_are_written_as_toml(data: dict[str, Any]) -> None:
    """The writer's text is read back by tomllib as the same values."""
    assert tomllib.loads(dump({"x": data})) == {"x": data}


def test_every_key_is_documented() -> None:
    """Each key has a sentence for the manual, and a default that the file could hold; all sections are there."""
    rows = documented_keys(checks.options_of, checks.names())
    assert len({(section, key) for section, key, _, _ in rows}) == len(rows)
    for section, key, default, text in rows:
        assert text.endswith("."), (section, key)
        if default != "required":
            tomllib.loads(f"key = {default}")
    assert {row[0] for row in rows} == {
        "", "site", "server", "server.listen", "server.fail", "store", "log", "keep", "dns", "alerts", "alert",
        "tiers", "tier.NAME", "check", "detect", "suspend",
        *(f"check {name}" for name in checks.names()),
    }  # fmt: skip
    assert ("server", "deadline", '"5s"', "Every request is answered within this time, 1s to 90s.") in rows


@dataclass(frozen=True)
class Odd:
    """Options of a check from elsewhere."""

    since: Any = dataclasses.field(
        default=datetime.date(2026, 1, 2),
        metadata={"read": lambda value: value, "help": "A date.", "key": ""},
    )
    ratio: float = setting(float, 0.5, help="A ratio.")


def test_a_check_may_have_values_of_its_own_types(file: File) -> None:
    """A check from elsewhere with dates and fractions is shown and read back, and its version is stable."""
    first = load(file(b"[[check]]\nuse = 'odd'\nsince = 2026-03-04\n"), lambda use: Odd)
    second = load(file(show(first).encode()), lambda use: Odd)
    assert second == first
    assert first.policy_version == second.policy_version
    later = load(file(b"[[check]]\nuse = 'odd'\nsince = 2026-03-05\n"), lambda use: Odd)
    assert later.policy_version != first.policy_version
