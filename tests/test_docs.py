"""The documents against the code: what can be typed or set is described, and what is described works."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from policyd import __main__ as daemon
from policyd import checks, cli
from policyd.answer import Answer
from policyd.config import documented_keys, load
from policyd.decision import Decision, Settled
from policyd.decisionlog import json_line, text_line
from policyd.request import Site
from policyd.service import build_engine
from policyd.steering import Steering
from policyd.window import Counter
from tests.cli.place import CONFIG, Place
from tests.fakes import ask

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "man").glob("*.scd"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {path: entry for path, entry in cli.COMMANDS.items() if entry.target}
KEYS = documented_keys(checks.options_of, checks.names())


def page(name: str) -> str:
    return (ROOT / "man" / f"{name}.scd").read_text(encoding="utf-8")


def plain(text: str) -> str:
    """The words of scdoc's source, without its marks."""
    return " ".join(re.sub(r"[\\*]", "", text).split())


def entries(text: str) -> dict[str, str]:
    """The definitions of a page: each line that begins in bold, with what is indented below it."""
    found: dict[str, str] = {}
    heading = ""
    for line in text.split("\n"):
        if line.startswith("#"):
            heading = ""
        elif line.startswith("*"):
            heading = line
            found[heading] = ""
        elif heading and (not line or line.startswith("\t")):
            found[heading] += line + "\n"
        else:
            heading = ""
    return {head: text for head, text in found.items() if text.strip()}


def sections(text: str) -> dict[str, str]:
    """The sections of a page by their headings."""
    parts = re.split(r"^# (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """The literal blocks of a document with their language; scdoc names none, so TOML is known by a section's head."""
    text = path.read_text(encoding="utf-8")
    for indent, language, body in re.findall(
        r"^(\t?)```(\w*)\n(.*?)^\t?```$", text, re.MULTILINE | re.DOTALL
    ):
        lines = [line.removeprefix(indent) for line in body.rstrip("\n").split("\n")]
        told = language
        if not language and any(re.match(r"\[{1,2}[a-z]", line) for line in lines):
            told = "toml"
        yield told, "\n".join(lines)


def examples() -> list[str]:
    """Each line of a literal block that has somebody type policyctl, without a prompt and what goes on after it."""
    lines = []
    for path in [*DOCUMENTS, *PAGES]:
        for language, body in blocks(path):
            if language in ("", "sh", "console", "shell"):
                lines += [line.removeprefix("$ ").removeprefix("sudo ") for line in body.split("\n")]
    return list(dict.fromkeys(line for line in lines if line.startswith("policyctl ")))


def words(example: str) -> list[str]:
    """What the shell would hand to policyctl."""
    lexer = shlex.shlex(example, posix=True, punctuation_chars="|<>;&")
    lexer.whitespace_split = True
    lexer.commenters = ""
    found: list[str] = []
    for token in lexer:
        if token and set(token) <= set("|<>;&"):
            break
        found.append(token)
    return found[1:]


def command_and_arguments(arguments: list[str]) -> tuple[str, click.Context]:
    """Which command ``arguments`` mean; click's own errors for what it does not take."""
    context = cli.main.make_context("policyctl", list(arguments))
    command: click.Command = cli.main
    path: list[str] = []
    while isinstance(command, click.Group):
        rest = [*_protected(context), *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert name is not None
        assert found is not None
        path.append(name)
        command = found
        context = command.make_context(name, rest, parent=context)
    return " ".join(path), context


def _protected(context: click.Context) -> list[str]:
    """The words that name a member; click before 8.2 has them under the plain name, newer ones warn of that."""
    names = vars(context)
    return names["_protected_args"] if "_protected_args" in names else names["protected_args"]


# --- policyctl(1) --------------------------------------------------------------------------------------------------------


def command_entry(path: str) -> tuple[str, str]:
    """The head and the text that policyctl(1) has for a command."""
    found = [
        (head, text) for head, text in entries(page("policyctl.1")).items() if head.startswith(f"*{path}*")
    ]
    assert len(found) == 1, f"man/policyctl.1.scd needs one entry that begins with *{path}*"
    return found[0]


@pytest.mark.parametrize("path", COMMANDS)
def test_the_manual_has_every_command_with_its_options_and_an_example(path: str) -> None:
    """A command, or an option of it, that is not in policyctl(1) cannot be found by who needs it."""
    head, text = command_entry(path)
    module, _, function = COMMANDS[path].target.partition(":")
    command = getattr(importlib.import_module(module), function)
    known = entries(page("policyctl.1"))
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.opts != ["--json"]:
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert f"*{option}*" in head + text, f"{path}: {option} is not in policyctl(1)"
        elif isinstance(parameter, click.Argument):
            metavar = (
                str(parameter.metavar or parameter.human_readable_name.upper())
                .strip("[]")
                .removesuffix("...")
            )
            assert metavar in head, f"{path}: the argument {metavar} is not in policyctl(1)"
    assert any("--json" in parameter.opts for parameter in command.params) or path == "dump"
    assert any(line.startswith("*--json*") for line in known)
    typed = re.findall(r"^\t(policyctl .+)$", text, re.MULTILINE)
    assert path in [command_and_arguments(words(line))[0] for line in typed], f"{path} has no example"


def test_the_manual_has_nothing_that_policyctl_has_not() -> None:
    """An entry that begins like a command is one, and the options in its head are that command's."""
    described = sections(page("policyctl.1"))
    for title in set(described) - {"OPTIONS", "EXIT STATUS", "ENVIRONMENT", "SEE ALSO"}:
        for head, text in entries(described[title]).items():
            path = re.match(r"\*([a-z -]+)\*", head)
            assert path, head
            assert path[1] in COMMANDS, head
            module, _, function = COMMANDS[path[1]].target.partition(":")
            command = getattr(importlib.import_module(module), function)
            options = {
                option
                for parameter in command.params
                for option in (*parameter.opts, *parameter.secondary_opts)
            }
            assert set(re.findall(r"\*(--?[a-z-]+)\*", head + text)) <= options | {"--json"}, head


def test_the_manual_has_every_exit_status() -> None:
    """A script can rely on what is written, so each status that policyctl and policyd end with is written."""
    found = entries(sections(page("policyctl.1"))["EXIT STATUS"])
    codes = (cli.OK, cli.FAILURE, cli.USAGE, cli.NOT_FOUND, cli.UNREACHABLE)
    assert sorted(found) == [f"*{code}*" for code in codes]
    described = (cli.main.help or "").partition("Exit codes:")[2]
    assert re.findall(r"\b(\d) ", described) == [str(code) for code in codes]
    assert sorted(entries(sections(page("policyd.8"))["EXIT STATUS"])) == ["*0*", "*1*", "*2*"]


def test_the_manual_has_every_option_of_policyctl_itself_and_of_policyd(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both commands' own options are in their pages."""
    options = sections(page("policyctl.1"))["OPTIONS"]
    for parameter in cli.main.params:
        assert all(f"*{option}*" in options for option in parameter.opts), parameter.opts
    with pytest.raises(SystemExit) as end:
        daemon.main(["--help"])
    assert end.value.code == 0
    told = set(re.findall(r"(?<![\w-])--?[a-z]+", capsys.readouterr().out))
    options = sections(page("policyd.8"))["OPTIONS"]
    assert told
    assert all(f"*{option}*" in options for option in told), told


# --- policyd.toml(5), policyd-checks(7) ----------------------------------------------------------------------------------


def _section_of(section: str) -> str:
    """The part of the manual that describes the keys of a section."""
    kind, _, check = section.partition(" ")
    if check:
        return sections(page("policyd-checks.7"))[check.upper()]
    titles = {
        "": "TOP OF THE FILE",
        "server.listen": "LISTENERS",
        "server.fail": "FAIL",
        "tier.NAME": "TIER",
        "check": "CHECKS",
    }
    return sections(page("policyd.toml.5"))[titles.get(kind, kind.upper())]


@pytest.mark.parametrize(("section", "key", "default", "help_text"), KEYS, ids=lambda value: str(value)[:20])
def test_the_manual_has_every_key_with_its_default_and_meaning(
    section: str, key: str, default: str, help_text: str
) -> None:
    """A key stands in its section as it would be written, with the default that holds and what the code says of it."""
    found = {plain(head): plain(text) for head, text in entries(_section_of(section)).items()}
    head = f"{key} (required)" if default == "required" else f"{key} = {default}"
    assert head in found, f"[{section}] {key}: no line {head!r} in the manual; there is {sorted(found)}"
    assert plain(help_text) in found[head]


def test_the_manual_has_no_key_that_does_not_exist() -> None:
    """A key that was renamed does not stay in the manual under its old name."""
    for section in dict.fromkeys(row[0] for row in KEYS):
        known = {key for where, key, *_ in KEYS if where == section}
        heads = [head for head in entries(_section_of(section)) if re.match(r"\*[a-z_]+\* (=|\()", head)]
        assert {re.match(r"\*([a-z_]+)", head)[1] for head in heads} == known, section  # type: ignore[index]


@pytest.mark.parametrize("name", checks.names())
def test_the_manual_has_every_check(name: str) -> None:
    """For each check: what it does, when to use it, what it answers, what its failure means, and an example."""
    text = sections(page("policyd-checks.7"))[name.upper()]
    for part in ("*When to use it.*", "*Answers.*", "*Failure.*", f'use = "{name}"'):
        assert part in text, f"{name}: {part} is missing in policyd-checks(7)"


def toml_blocks() -> list[tuple[str, str]]:
    return [
        (f"{path.name}:{body.splitlines()[0]}", body)
        for path in [*DOCUMENTS, *PAGES]
        for language, body in blocks(path)
        if language == "toml"
    ]


@pytest.fixture
def mysite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The example check of docs/writing-a-check.md, where Python finds it: its TOML."""
    found = dict(blocks(ROOT / "docs" / "writing-a-check.md"))
    package = tmp_path / "site" / "mysite"
    package.mkdir(parents=True)
    (package / "own_helo.py").write_text(found["python"], encoding="utf-8")
    monkeypatch.syspath_prepend(str(package.parent))
    return found["toml"]


@pytest.mark.usefixtures("mysite")
@pytest.mark.parametrize(("place", "body"), toml_blocks(), ids=lambda value: str(value).split("\n")[0][:40])
def test_every_example_of_configuration_loads(tmp_path: Path, place: str, body: str) -> None:
    """Who copies an example gets a configuration that policyd takes."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "empty.toml").touch()
    (tmp_path / "policyd.toml").write_text(body, encoding="utf-8")
    build_engine(load(tmp_path / "policyd.toml", checks.options_of))


def test_the_readme_connects_postfix_as_contrib_does() -> None:
    """The lines that a real Postfix is tested with (tests/system) are those at the top of the README, but for the address."""

    def wiring(path: Path) -> list[str]:
        found = [
            body for _, body in blocks(path) if "mua_recipient_restrictions" in body and "policyd" in body
        ]
        return [re.sub(r"(inet|unix):\S+,", "ADDRESS,", body) for body in found[:2]]

    ours = wiring(ROOT / "README.md")
    assert ours[0].count("\n") == 3, "four lines"
    assert ours == wiring(ROOT / "contrib" / "postfix" / "README.md")


def test_there_are_examples_to_test() -> None:
    """The tests above read the documents as they are written: nothing to read would be a green test of nothing."""
    assert len(toml_blocks()) >= 10
    assert len(examples()) >= len(COMMANDS)


# --- the decision log ----------------------------------------------------------------------------------------------------


def full_decision() -> Decision:
    """A decision in which nothing is empty."""
    settled = Settled(
        Answer("450", "4.7.1 text"), "refuse", "quota", "reason", "7F3K2", "would", "{}", "[]", "repeat"
    )
    return Decision(1, 1, 1, ask(), settled, "71705e7f", 1)


def test_every_key_of_the_decision_log_is_described() -> None:
    """A line can be read by who has only the manual: text and JSON, in policyd(8) and in docs/decisions.md."""
    keys = set(re.findall(r"(?<= )([a-z_]+)=", text_line(full_decision())))
    in_json = set(json.loads(json_line(full_decision())))
    assert {"id", "verdict", "mark", "us"} <= keys < in_json
    log = sections(page("policyd.8"))["DECISION LOG"]
    defined = set(re.findall(r"\*([a-z_]+)\*", "\n".join(entries(log))))
    assert keys == defined
    assert all(f"*{key}*" in log for key in in_json)
    guide = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in guide for key in keys | in_json)


def test_every_mark_is_described() -> None:
    """A word in the log that nobody explains is worse than none."""
    source = "\n".join(path.read_text() for path in (ROOT / "policyd").rglob("*.py"))
    declared = re.search(r"^REPEAT, LATE, MEMORY, DEADLINE = (.+)$", source, re.MULTILINE)
    assert declared, "the marks of a decision moved; find them anew here"
    guide = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    for mark in re.findall(r'"(\w+)"', declared[1]):
        assert f"*{mark}*" in page("policyd.8")
        assert f"`{mark}`" in guide


def test_every_message_that_the_manual_promises_is_in_the_code() -> None:
    """An alarm that waits for a word must not wait for one that never comes."""
    source = "\n".join(path.read_text() for path in (ROOT / "policyd").rglob("*.py"))
    heads = entries(sections(page("policyd.8"))["MESSAGES"])
    assert heads
    for head in heads:
        pattern = re.escape(head.strip("*")).replace("NAME", "%s")
        assert re.search(pattern, source), head


# --- examples ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", examples())
def test_every_example_is_a_command_that_policyctl_takes(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who copies an example is not told that it is wrong: it works, or says what is missing on this machine."""
    monkeypatch.chdir(tmp_path)
    # A nameserver that is not there: no example may ask the real one.
    place = Place(tmp_path, f'{CONFIG}\n[dns]\nnameservers = ["127.0.0.1:1"]\n')
    place.write("UPDATE counter SET cells = ?", Counter().pack())
    path, context = command_and_arguments(words(example))
    assert path in COMMANDS
    if context.params.get("follow"):
        return
    arguments = [
        word if not word.startswith("/var/") else str(tmp_path / Path(word).name) for word in words(example)
    ]
    # In a thread, since the tests' own event loop runs in this one.
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(
            CliRunner().invoke, cli.main, ["--config", str(place.config), *arguments], input="192.0.2.7\n"
        ).result()
    assert isinstance(result.exception, SystemExit | None), result.exception
    # That of doctor is a monitoring plug-in's; what it does not take command_and_arguments has refused above.
    assert result.exit_code != cli.USAGE or path == "doctor", result.output


def test_the_example_check_loads_and_runs(mysite: str, tmp_path: Path) -> None:
    """docs/writing-a-check.md is enough to write a check: its example, copied, decides as it says."""
    path = tmp_path / "policyd.toml"
    # For mail of both directions, so that the check itself has to spare our own.
    text = mysite.replace('mode = "shadow"', 'mode = "enforce"').replace('for = "mx"\n', "")
    path.write_text(text, encoding="utf-8")
    config = load(path, checks.options_of)
    engine = build_engine(config)

    def decide(site: Site, **attributes: str) -> Any:
        given = {"protocol_state": "RCPT", "client_address": "192.0.2.7", "sender": "a@example.net"}
        with pytest.raises(StopIteration) as end:
            engine.consult(site.request(given | attributes), 0, Steering()).send(None)
        return end.value.value

    refused = decide(config.site, helo_name="Example.ORG")
    assert str(refused.answer) == "550 5.7.1 That is our name. ref {ref}"
    assert (refused.check, refused.reason) == ("own-helo", "HELO example.org")
    assert decide(config.site, helo_name="mail.example.org").check == "own-helo"
    assert str(decide(config.site, helo_name="mail.example.net").answer) == "DUNNO"
    login = {"sasl_method": "plain", "sasl_username": "alice"}
    assert str(decide(config.site, helo_name="example.org", **login).answer) == "DUNNO"


# --- the pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", PAGES, ids=lambda path: path.name)
def test_the_manual_page_compiles(source: Path) -> None:
    """scdoc takes each page, and its head names the page and the section of the file."""
    scdoc = shutil.which("scdoc")
    assert scdoc, "scdoc is missing: run tools/install-test-packages.sh docs, or install the package scdoc"
    done = subprocess.run(
        [scdoc], input=source.read_text(encoding="utf-8"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    name, section = source.name.removesuffix(".scd").rsplit(".", 1)
    assert re.search(rf'^\.TH "{re.escape(name)}" "{section}"', done.stdout, re.MULTILINE), done.stdout[:300]


def test_the_pages_are_those_that_are_promised() -> None:
    """Each command, the configuration and the checks have a page, and SEE ALSO leads to pages that exist."""
    names = {path.name.removesuffix(".scd") for path in PAGES}
    assert {"policyd.8", "policyctl.1", "policyd.toml.5", "policyd-checks.7"} <= names
    for path in PAGES:
        for name, section in re.findall(r"\*(policy[a-z.-]+)\*\((\d)\)", path.read_text(encoding="utf-8")):
            assert f"{name}.{section}" in names, f"{path.name} refers to {name}({section})"
