"""The architecture as a test: which ring a module stands in, and what that ring may import."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.rings

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "policyd"

# A name stands for the module or the package with all that is in it. A module that is in no ring fails the suite:
# where a new one belongs is decided here, in the same change.
RINGS: dict[str, tuple[str, ...]] = {
    "words": (
        "policyd.errors",
        "policyd.answer",
        "policyd.request",
        "policyd.opinion",
        "policyd.match",
        "policyd.window",
        "policyd.units",
        "policyd.descriptors",
        "policyd.settings",
        "policyd.steering",
        "policyd.tiers",
        "policyd.decision",
        "policyd.lookup",
        "policyd.dnsbl_sites",
        "policyd.blocklists",
        "policyd.senderpolicy",
        "policyd.inquiry",
        "policyd.condition",
        "policyd.greylisting",
        "policyd.accounts",
        "policyd.peaks",
        "policyd.findings",
        "policyd.alert",
        "policyd.alertbook",
        "policyd.alertwatch",
        "policyd.sentence",
        "policyd.suspending",
        "policyd.marks",
        "policyd.state",
    ),
    "rules": (
        "policyd.wire",
        "policyd.engine",
        "policyd.settle",
        "policyd.trial",
        "policyd.checks",
        "policyd.watch",
        "policyd.detectors",
    ),
    "outside": (
        "policyd.store",
        "policyd.config",
        "policyd.decisionlog",
        "policyd.messages",
        "policyd.notify",
        "policyd.dns",
        "policyd.geo",
        "policyd.maillog",
        "policyd.postfix",
        "policyd.alerts",
    ),
    "assembly": (
        "policyd.desk",
        "policyd.alertdesk",
        "policyd.hook",
        "policyd.stagewatch",
        "policyd.session",
        "policyd.listen",
        "policyd.twisted_listen",
        "policyd.service",
        "policyd.names",
        "policyd.doctor",
        "policyd.cli",
        "policyd.__main__",
    ),
}

# What each ring may import of policyd. Inner rings know nothing of outer ones.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "words": frozenset({"words"}),
    "rules": frozenset({"words", "rules"}),
    "outside": frozenset({"words", "outside"}),
    "assembly": frozenset(RINGS),
}

# Narrower than the ring: these modules may import only what is named (and their own package).
NARROWER: dict[str, tuple[str, ...]] = {
    "policyd.checks": ("words",),
    "policyd.detectors": ("words",),
    "policyd.wire": ("words",),
}

# Wider than the ring, each with its reason.
WIDER: dict[str, tuple[str, ...]] = {
    # The writer runs settle's pure arithmetic inside its transaction.
    "policyd.store": ("policyd.settle", "policyd.trial", "policyd.watch"),
    # Each check owns the keys of its section, each detector its word in a sentence; the configuration reads them.
    "policyd.config": ("policyd.checks", "policyd.detectors"),
    # Whom a country is asked for, where no database is.
    "policyd.geo": ("policyd.detectors",),
}

# Modules from elsewhere that only the named parts may import. Python's own library is otherwise free to all.
RESERVED: dict[str, tuple[str, ...]] = {
    "twisted": ("assembly",),
    "zope": ("assembly",),
    "uvloop": ("assembly",),
    "click": ("policyd.cli",),
    "sqlite_utils": ("policyd.cli",),
    "sqlite3": ("policyd.store", "policyd.doctor", "policyd.cli"),
    "dns": ("outside",),
    "spf": ("outside",),
    "idna": ("words", "outside"),  # pure functions; without A-labels one domain has two spellings
    "maxminddb": ("policyd.geo",),  # optional
    "tomllib": ("policyd.config", "policyd.cli"),
    # A rule has no socket, no thread and no process of its own.
    "socket": ("outside", "assembly"),
    "subprocess": ("outside", "assembly"),
    "threading": ("outside", "assembly"),
    # Time is an argument, and so is the stopwatch.
    "time": ("outside", "assembly"),
    "asyncio": ("outside", "assembly"),
}

CLOCK_METHODS = frozenset({"now", "today", "utcnow"})


@dataclass(frozen=True)
class Import:
    """One imported module, as seen in the source."""

    target: str
    line: int
    at_start: bool  # runs when the module is loaded: not inside a function, not for the type checker alone


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def within(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


def ring_of(module: str) -> str | None:
    return next((ring for ring, names in RINGS.items() if within(module, names)), None)


def imports_of(path: Path) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, at_start: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, at_start) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
            assert node.module is not None
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                target = submodule if submodule in MODULES else node.module
                found.append(Import(target, node.lineno, at_start))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_start = False
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, False)
            for child in node.orelse:
                visit(child, at_start)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, at_start)

    visit(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)), True)
    return found


def objection(module: str, target: str) -> str | None:
    """Say why `module` may not import `target`, or None when it may."""
    ring = ring_of(module)
    top = target.partition(".")[0]
    if top == "policyd":
        if target == "policyd" or within(target, WIDER.get(_part(module), ())):
            return None
        other = ring_of(target)
        if ring is None or other is None:
            return None  # test_every_module_stands_in_a_ring names it
        narrower = NARROWER.get(_part(module))
        if narrower is not None:
            if other in narrower or within(target, (_part(module),)):
                return None
            return f"{_part(module)} may import {' and '.join(narrower)} only"
        return None if other in MAY_IMPORT[ring] else f"ring {ring} may not import ring {other}"
    if top in RESERVED:
        if ring in RESERVED[top] or within(module, RESERVED[top]):
            return None
        return f"{top} is for {', '.join(RESERVED[top])}"
    if top in sys.stdlib_module_names:
        return None
    return f"{top} is neither Python's own nor named in RESERVED"


def _part(module: str) -> str:
    """The first two parts of a module's name: policyd.checks.quota is a part of policyd.checks."""
    return ".".join(module.split(".")[:2])


def test_every_module_stands_in_a_ring() -> None:
    """A new module says where it belongs before it is merged."""
    strangers = [name for name in MODULES if name != "policyd" and ring_of(name) is None]
    assert not strangers, f"in no ring of {Path(__file__).name}: {', '.join(strangers)}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_ring_may(module: str) -> None:
    """Inner rings import nothing from outer ones, and each library has its one place."""
    path = MODULES[module]
    broken = [
        f"{path.relative_to(ROOT)}:{found.line}: imports {found.target}: {reason}"
        for found in imports_of(path)
        if (reason := objection(module, found.target)) is not None
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("module", [name for name in MODULES if ring_of(name) in {"words", "rules"}])
def test_words_and_rules_read_no_clock(module: str) -> None:
    """Time is an argument, never read inside a rule: not through datetime either."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    read = [
        f"{module}:{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in CLOCK_METHODS
        and ast.unparse(node.func.value) in {"datetime", "datetime.datetime", "date", "datetime.date"}
    ]
    assert not read, "\n".join(read)


def test_no_import_cycle() -> None:
    """Modules load in one order: what a module needs at its start never needs that module."""
    needs = {
        name: {found.target for found in imports_of(path) if found.at_start and found.target in MODULES}
        - {name}
        for name, path in MODULES.items()
    }
    order: list[str] = []
    trail: list[str] = []

    def visit(name: str) -> None:
        assert name not in trail, "import cycle: " + " -> ".join([*trail[trail.index(name) :], name])
        if name in order:
            return
        trail.append(name)
        for needed in sorted(needs[name]):
            visit(needed)
        trail.pop()
        order.append(name)

    for name in needs:
        visit(name)


def test_the_table_for_contributors_is_this_one() -> None:
    """CONTRIBUTING.md names the modules of each ring, all of them and no other."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("|")]
    told = {
        ring.strip(): sorted(re.findall(r"\w+", modules)) for ring, modules in rows if ring.strip() in RINGS
    }
    assert told == {
        ring: sorted(name.removeprefix("policyd.") for name in names) for ring, names in RINGS.items()
    }


@pytest.mark.parametrize("module", list(MODULES))
def test_what_catches_everything_says_why(module: str) -> None:
    """No bare except; one that catches any Exception and goes on has its reason beside it or right above."""
    text = MODULES[module].read_text(encoding="utf-8").splitlines()
    silent = []
    for node in ast.walk(ast.parse("\n".join(text))):
        if not isinstance(node, ast.ExceptHandler):
            continue
        kinds = {each.id for each in ast.walk(node.type) if isinstance(each, ast.Name)} if node.type else {""}
        if not kinds & {"", "Exception", "BaseException"} or isinstance(node.body[-1], ast.Raise):
            continue
        beside = re.sub(r"noqa: [A-Z]+\d+", "", text[node.lineno - 1].partition("#")[2]).strip(" ,#")
        if "" in kinds or not (beside or text[node.lineno - 2].lstrip().startswith("#")):
            silent.append(f"{module}:{node.lineno}: {text[node.lineno - 1].strip()}")
    assert not silent, "\n".join(silent)


@pytest.mark.parametrize(
    ("module", "target", "allowed"),
    [
        ("policyd.window", "policyd.errors", True),
        ("policyd.window", "policyd.wire", False),
        ("policyd.window", "time", False),
        ("policyd.checks.quota", "policyd.checks.bans", True),
        ("policyd.checks.quota", "policyd.engine", False),
        ("policyd.checks.quota", "policyd.store.ledger", False),
        ("policyd.checks.quota", "sqlite3", False),
        ("policyd.engine", "twisted.internet", False),
        ("policyd.store.ledger", "sqlite3", True),
        ("policyd.store.ledger", "policyd.settle", True),
        ("policyd.store.ledger", "policyd.engine", False),
        ("policyd.store.ledger", "policyd.service", False),
        ("policyd.config.load", "sqlite3", False),
        ("policyd.config.load", "policyd.checks", True),
        ("policyd.engine", "time", False),
        ("policyd.service", "twisted.internet", True),
        ("policyd.service", "click", False),
        ("policyd.cli.ban", "click", True),
        ("policyd.service", "requests", False),
    ],
)
def test_the_rules_of_this_file_can_fail(module: str, target: str, allowed: bool) -> None:
    """The table above is really asked: a known good and a known bad import of each kind."""
    assert (objection(module, target) is None) is allowed
