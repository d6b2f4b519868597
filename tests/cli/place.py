"""A configuration, a database and policyctl, for tests of its commands."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import CliRunner, Result

from policyd.cli import main
from policyd.store.connect import open_for_daemon

CONFIG = """
[site]
domains = ["example.org"]
default_domain = "example.org"

[server]
listen = ["inet:127.0.0.1:0"]

[store]
url = "sqlite:///{path}"

[tiers]
default = "new"

[tier.new]
limits = ["20 recipients per 1h"]

[tier.bulk]
limits = ["5000 recipients per 1h", "1GB per 1d"]
members = ["news@example.org"]

[[check]]
use = "allow"

[[check]]
use = "bans"
never = ["postmaster@example.org", "example.com", "192.0.2.0/24"]

[[check]]
use = "quota"
for = "submission"
"""
TABLES = (
    *("ban", "allow", "user_limit", "user_grant", "check_mode", "sender_right", "greylist_allow"),
    *("memory", "counter", "history", "change"),
)


class Ran(NamedTuple):
    """What a run of policyctl came to."""

    exit_code: int
    stdout: str
    stderr: str


class Place:
    """One directory with all that policyctl needs; alice@example.org has been seen."""

    def __init__(self, directory: Path, config: str = CONFIG) -> None:
        self.database = directory / "policyd.db"
        self.config = directory / "policyd.toml"
        self.config.write_text(config.format(path=self.database), encoding="utf-8")
        if not self.database.exists():
            open_for_daemon(str(self.database)).close()
        self.write(
            "INSERT OR IGNORE INTO counter VALUES ('user', 'alice@example.org', 'messages', x'', 9999999999999)"
        )

    def run(
        self, *words: str, stdin: str | bytes = "", env: dict[str, str] | None = None, color: bool = False
    ) -> Result:
        """What ``policyctl --config ... WORDS`` prints and how it ends."""
        return CliRunner(env={"SUDO_USER": "root", "NO_COLOR": ""} | (env or {})).invoke(
            main, ["--config", str(self.config), *words], input=stdin, color=color
        )

    def ran(self, *words: str) -> Ran:
        """The same with both streams apart, which click 8.1 and 8.2 do in ways that differ."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main.main(["--config", str(self.config), *words])
            except SystemExit as ended:
                return Ran(int(ended.code or 0), out.getvalue(), err.getvalue())
        raise AssertionError("policyctl came back")

    def json(self, *words: str) -> Any:
        """What it prints for programs; it must have worked."""
        result = self.run("--json", *words)
        assert result.exit_code == 0, (result.output, result.exception)
        # Behind what was remarked on: click 8.1 has both streams in one.
        begins = re.search(r"^[\[{]", result.stdout, re.MULTILINE)
        assert begins is not None, result.stdout
        return json.loads(result.stdout[begins.start() :])

    def ask(self, sql: str, *values: object) -> list[Any]:
        """Rows of the database."""
        connection = sqlite3.connect(self.database)
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    def write(self, sql: str, *values: object) -> None:
        """Change the database behind policyctl's back."""
        connection = sqlite3.connect(self.database)
        try:
            with connection:
                connection.execute(sql, values)
        finally:
            connection.close()

    def everything(self) -> dict[str, list[Any]]:
        """All rows of all tables that policyctl may change."""
        return {table: self.ask(f"SELECT * FROM {table}") for table in TABLES}
