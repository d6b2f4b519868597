"""Several files as one configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyd import checks
from policyd.config import load
from policyd.errors import ConfigError


def tree(root: Path, **files: str) -> Path:
    """Files by name (``__`` for a directory); the main one is returned."""
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ".toml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root / "main.toml"


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, checks.options_of)
    return [text.replace(f"{path.parent}/", "") for text in caught.value.problems]


def test_included_files_add_to_the_configuration(tmp_path: Path) -> None:
    """Relative to the file that includes, in the order of names; checks are appended, tables are joined."""
    main = tree(
        tmp_path,
        main="include = ['conf.d/*.toml']\n[site]\ndomains = ['a.example']\n[[check]]\nuse = 'allow'\n",
        conf__d__b="",
    )
    conf = tmp_path / "conf.d"
    conf.mkdir()
    (conf / "20-quota.toml").write_text("[[check]]\nuse = 'quota'\n[tier.bulk]\nmembers = ['x@a.example']\n")
    (conf / "10-bans.toml").write_text(
        "[site]\ndefault_domain = 'a.example'\n[[check]]\nuse = 'bans'\n"
        "[tiers]\ndefault = 'bulk'\n[tier.bulk]\nlimits = ['1 messages per 1h']\n"
    )
    (conf / "30-off.toml~").write_text("this is no TOML")
    config = load(main, checks.options_of)
    assert [check.name for check in config.checks] == ["allow", "bans", "quota"]
    assert config.checks[2].place == f"{conf}/20-quota.toml:1"
    assert config.site.domains == {"a.example"}
    assert config.site.default_domain == "a.example"
    assert config.tiers.all["bulk"].members == {"x@a.example"}
    assert len(config.tiers.all["bulk"].limits) == 1


def test_an_included_file_may_include(tmp_path: Path) -> None:
    """Its patterns are relative to itself."""
    main = tree(
        tmp_path,
        main="include = ['sub/a.toml']",
        sub__a="include = ['b.toml']",
        sub__b="[server]\ndeadline = '3s'",
    )
    assert load(main, checks.options_of).server.deadline == 3000


def test_a_key_set_twice_names_both_places(tmp_path: Path) -> None:
    """Neither file wins silently; equal values are no excuse, lists are not joined."""
    main = tree(
        tmp_path,
        main="include = ['b.toml']\n[server]\nmax_connections = 5\nlisten = ['unix:/a']\n[site]\ndomains = []\n",
        b="[site]\ndomains = []\n[server]\nmax_connections = 5\nlisten = ['unix:/b']\n",
    )
    assert problems(main) == [
        "b.toml:2: site.domains: is already set at main.toml:6; keep one of them",
        "b.toml:4: server.max_connections: is already set at main.toml:3; keep one of them",
        "b.toml:5: server.listen: is already set at main.toml:4; keep one of them",
    ]


def test_problems_in_included_files_have_their_own_place(tmp_path: Path) -> None:
    """Also behind the appending of checks, where the number of a check is not that in its file."""
    main = tree(
        tmp_path,
        main="include = ['b.toml', 'c.toml']\n[[check]]\nuse = 'allow'\n",
        b="\n[[check]]\nuse = 'bans'\n[[check]]\nuse = 'quota'\nper = 'x'\n",
        c="[[check]]\nuse = 'allow'\nname = 'more'\nclient = []\n",
    )
    found = problems(main)
    assert found[0].startswith("b.toml:6: check \"quota\" per: 'x' is none of")
    assert found[1:] == [
        'c.toml:4: check "more" client: unknown key; did you mean clients?',
    ]


def test_checks_of_one_name_in_two_files_name_both_places(tmp_path: Path) -> None:
    """Appending does not hide that a check is there already."""
    main = tree(
        tmp_path,
        main="include = ['b.toml']\n[[check]]\nuse = 'allow'\n",
        b="\n[[check]]\nuse = 'allow'\n",
    )
    assert problems(main) == [
        'b.toml:2: check "allow": a check of this name stands at main.toml:2 already; give one of them another name'
    ]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"main": "include = ['main.toml']"}, "main.toml:1: include: main.toml is included by itself"),
        (
            {"main": "\ninclude = ['a.toml']", "a": "include = ['main.toml']"},
            "a.toml:1: include: main.toml is included by itself",
        ),
        (
            {"main": "include = ['a.toml', '*.toml']", "a": ""},
            "main.toml:1: include: a.toml is included already, at main.toml:1",
        ),
        (
            {"main": "include = ['a.toml']"},
            "a.toml: there is no such file; correct the include (included at main.toml:1)",
        ),
        ({"main": "include = 'a.toml'"}, "main.toml:1: include: must be a list of file names"),
        ({"main": "include = ['']"}, "main.toml:1: include: '' is no file name"),
        ({"main": 'include = ["a\\u0000*"]'}, "is no file name"),
        (
            {"main": "include = ['sub']", "sub__a": ""},
            "sub: is a directory; correct the include (included at main.toml:1)",
        ),
        ({"main": "include = ['a.toml']", "a": "x ="}, "a.toml:1: no valid TOML"),
    ],
)
def test_an_include_that_cannot_work_is_refused(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    """Cycles, files twice, and files that are missing or unreadable; with the place of the include."""
    found = problems(tree(tmp_path, **files))
    assert any(problem in line for line in found), found


def test_a_pattern_may_match_nothing(tmp_path: Path) -> None:
    """An empty conf.d is how it is delivered."""
    load(tree(tmp_path, main="include = ['conf.d/*.toml']"), checks.options_of)


def test_a_missing_file_does_not_make_the_rest_look_wrong(tmp_path: Path) -> None:
    """The tier that stands in an unreadable file is not reported as missing; what is wrong elsewhere is."""
    main = tree(tmp_path, main="include = ['tiers.toml']\n[tiers]\ndefault = 'new'\n[log]\nformat = 'xml'\n")
    assert problems(main) == [
        "main.toml:5: log.format: 'xml' is none of text, json",
        "tiers.toml: there is no such file; correct the include (included at main.toml:1)",
    ]
