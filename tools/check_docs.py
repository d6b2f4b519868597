"""Compare the documents with the tree: links, paths, commands, TOML examples, the changelog."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ("policyd/", "tests/", "contrib/", "man/", "tools/", "packaging/", "bench/", ".ci/")

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
MAKE = re.compile(r"\bmake ([a-z][a-z-]*)")
POLICYCTL = r"(?:^|[^\w/.-])policyctl(?: --config [^\s]+)? ([a-z][a-z-]*)\b"
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The names under which a document's headings can be linked."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in HEADING.findall(FENCE.sub("", text))
    }


def check_links(path: Path, text: str) -> Iterator[str]:
    """A relative link leads to a file, and its #part to a heading there."""
    for target in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, part = target.partition("#")
        linked = path.parent / name if name else path
        if not linked.exists():
            yield f"links to {name}, which does not exist"
        elif part and linked.suffix == ".md" and part not in anchors(linked.read_text(encoding="utf-8")):
            yield f"links to {target}, but {linked.name} has no such heading"


def check_paths(text: str) -> Iterator[str]:
    """A path of this project between backticks exists; `policyd/checks/NAME.py` and globs are patterns."""
    for code in CODE.findall(FENCE.sub("", text)):
        word = code.split()[0].rstrip(",;:") if code.split() else ""
        if word.startswith(OURS) and not re.search(r"[A-Z*{<]|\.\.\.", word.removesuffix("README")):
            name = word.partition(":")[0]
            if not (ROOT / name).exists():
                yield f"names {name}, which does not exist"


def check_make(text: str, targets: set[str]) -> Iterator[str]:
    """A command `make X` is one of the Makefile's."""
    commands = [code for code in CODE.findall(FENCE.sub("", text)) if code.startswith("make ")]
    commands += [body for language, body in FENCE.findall(text) if language in {"", "sh", "console", "shell"}]
    for command in commands:
        for target in MAKE.findall(command):
            if target not in targets:
                yield f"says make {target}, which the Makefile does not have"


def check_toml(text: str) -> Iterator[str]:
    """An example of configuration is valid TOML."""
    for language, body in FENCE.findall(text):
        if language == "toml":
            try:
                tomllib.loads(body)
            except tomllib.TOMLDecodeError as error:
                yield f"holds a TOML example that does not parse: {error}: {body.splitlines()[0]!r}"


def check_commands(texts: dict[Path, str]) -> Iterator[str]:
    """`policyctl NAME ...`, wherever a document says so, is a command that can be asked for its help."""
    said: dict[str, str] = {}
    for path, text in texts.items():
        commands = CODE.findall(FENCE.sub("", text)) + [body for _, body in FENCE.findall(text)]
        for name in re.findall(POLICYCTL, "\n".join(commands), re.MULTILINE):
            said.setdefault(name, path.relative_to(ROOT).as_posix())
    for name, where in sorted(said.items()):
        asked = subprocess.run(
            [sys.executable, "-m", "policyd.cli", name, "--help"], cwd=ROOT, capture_output=True, check=False
        )
        if asked.returncode != 0:
            yield f"{where}: says policyctl {name}, which `policyctl {name} --help` does not know"


def check_changelog() -> Iterator[str]:
    """What is not released yet has its place at the top."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[([^\]]+)\]", text, re.MULTILINE)
    if not sections or sections[0] != "Unreleased":
        yield "CHANGELOG.md: the first section must be [Unreleased]"


def check_suppressions(files: list[Path]) -> Iterator[str]:
    """SQL is put together from parts in the store alone (names of partitions); values are always bound."""
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        if path.suffix != ".py" or name.startswith(("policyd/store/", "tests/", "bench/")):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(r"#\s*noqa:.*\bS60[8]\b", line):
                yield f"{name}:{number}: SQL built from strings outside policyd/store; bind values with ?"


def tracked() -> list[Path]:
    """The files that are, or with the next commit would be, in the repository."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [path for name in sorted(set(listing.split("\0")) - {""}) if (path := ROOT / name).is_file()]


def main() -> int:
    """Print one line for each disagreement; 1 if there is any."""
    files = tracked()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    problems = [*check_changelog(), *check_suppressions(files)]
    texts = {path: path.read_text(encoding="utf-8") for path in files if path.suffix == ".md"}
    problems += check_commands(texts)
    for path, text in texts.items():
        found = [*check_links(path, text), *check_paths(text), *check_make(text, targets), *check_toml(text)]
        problems += [f"{path.relative_to(ROOT)}: {problem}" for problem in found]
    for problem in problems:
        print(f"check_docs: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
