"""What loads, and what is refused with which words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from policyd import checks
from policyd.config import Config, Listener, load
from policyd.errors import ConfigError
from policyd.match import parse_network
from policyd.settings import setting, whole
from policyd.tiers import Tier
from policyd.units import DAY, HOUR, Limit

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "policyd.toml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def loaded(path: Path) -> Config:
    return load(path, checks.options_of)


def problems(path: Path) -> list[str]:
    """The problems, with the file's name cut down to its last part."""
    with pytest.raises(ConfigError) as caught:
        loaded(path)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [text.replace(str(path.parent) + os.sep, "") for text in caught.value.problems]


EVERYTHING = """
[site]
domains = ["Example.ORG", "b.example."]
networks = ["192.0.2.0/24"]
default_domain = "Example.org"
submission_contexts = ["submission", "smtps"]
[server]
listen = ["inet:[::1]:10047", { address = "unix:/run/p.sock", label = "p", for = "mx", mode = "0666", group = "postfix" },
  { address = "inet:192.0.2.1:10047", for = "submission", allow_from = ["192.0.2.0/24"] }, "systemd:policyd",
  "tcp:10048:interface=127.0.0.1"]
deadline = "1500ms"
fail = { submission = "reject" }
max_connections = 7
[store]
url = "sqlite:var/x.db"
durability = "normal"
memory_backlog = 5
[log]
decisions = ["file:x.log", "syslog:mail", "-"]
format = "json"
[keep]
decisions = "7d"
max_size = "1GiB"
min_free = "0MB"
[dns]
nameservers = ["192.0.2.1", "127.0.0.1:5353", "[::1]:53", "[2001:DB8:0::1]"]
timeout = "500ms"
cache_size = "2MB"
[tiers]
default = "new"
[tier.new]
limits = ["20 recipients per 1h", "20MB per 1d"]
[tier.bulk]
members = ["News@Example.org", "@lists.example", "robot", "client:192.0.2.7"]
[[check]]
use = "bans"
never = ["postmaster@example.org"]
[[check]]
use = "quota"
name = "server"
for = "submission"
mode = "shadow"
on_error = "defer"
per = "server"
limits = ["5000 recipients per 1h"]
"""


def test_everything_is_read_into_its_type(write: Write) -> None:
    """Durations are ms, sizes bytes, names folded; each key arrives where the daemon looks for it."""
    config = loaded(write(EVERYTHING))
    assert config.site.domains == {"example.org", "b.example"}
    assert list(config.site.networks) == [parse_network("192.0.2.0/24")]
    assert config.site.default_domain == "example.org"
    assert config.site.submission_contexts == {"submission", "smtps"}
    first, socket, wide, inherited, endpoint = config.server.listen
    assert (first.label, first.kind, first.inet, first.direction) == (
        "inet:[::1]:10047",
        "inet",
        ("::1", 10047),
        "",
    )
    assert (socket.label, socket.kind, socket.direction, socket.mode, socket.group) == (
        "p",
        "unix",
        "mx",
        0o666,
        "postfix",
    )
    assert wide.direction == "submission"
    assert "192.0.2.9" in wide.allow_from
    assert (inherited.kind, endpoint.kind) == ("systemd", "endpoint")
    assert (config.server.deadline, config.server.max_connections) == (1500, 7)
    assert config.server.fail == {"submission": "reject", "mx": "dunno"}
    assert (config.store.path, config.store.durability, config.store.memory_backlog) == (
        os.path.abspath("var/x.db"),
        "normal",
        5,
    )
    assert (config.log.decisions, config.log.format) == (("file:x.log", "syslog:mail", "-"), "json")
    assert (config.keep.decisions, config.keep.max_size, config.keep.min_free) == (7 * DAY, 2**30, 0)
    assert config.dns.nameservers == ("192.0.2.1:53", "127.0.0.1:5353", "[::1]:53", "[2001:db8::1]:53")
    assert (config.dns.timeout, config.dns.cache_size) == (500, 2_000_000)
    assert config.tiers.default == "new"
    assert config.tiers.all["new"].limits == (Limit(20, "recipients", HOUR), Limit(20_000_000, "bytes", DAY))
    assert config.tiers.all["bulk"] == Tier(
        "bulk",
        (),
        frozenset({"news@example.org", "@lists.example", "robot@example.org", "client:192.0.2.7"}),
        quiet=True,
    )
    bans, quota = config.checks
    assert (bans.name, bans.use, bans.direction, bans.mode, bans.on_error) == (
        "bans",
        "bans",
        "any",
        "enforce",
        "skip",
    )
    assert bans.options.never == ("postmaster@example.org",)
    assert (quota.name, quota.direction, quota.mode, quota.on_error) == (
        "server",
        "submission",
        "shadow",
        "defer",
    )
    assert quota.options.limits == (Limit(5000, "recipients", HOUR),)
    assert quota.place.endswith(f":{EVERYTHING.count(chr(10), 0, EVERYTHING.rindex('[[check]]')) + 1}")


def test_an_empty_file_has_every_default(write: Write) -> None:
    """No key is required: without any, policyd listens on loopback and keeps its files where packages put them."""
    config = loaded(write(""))
    assert config.server.listen == (Listener("inet:127.0.0.1:10047"),)
    assert config.server.fail == {"submission": "defer", "mx": "dunno"}
    assert config.store.path == "/var/lib/policyd/policyd.db"
    assert config.checks == ()


def test_the_shipped_configuration_loads() -> None:
    """`make run` starts with it, without root: nothing outside the working directory and no routable address."""
    config = loaded(Path(checks.__file__).parent.parent / "data" / "policyd.toml")
    assert [listener.address for listener in config.server.listen] == ["inet:127.0.0.1:10047"]
    assert config.store.path == os.path.abspath("var/policyd.db")
    assert config.log.decisions == ("file:var/decisions.log",)
    assert [check.name for check in config.checks] == ["allow", "bans", "quota"]
    assert config.tiers.limits_of("anybody@example.org")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///var/lib/p.db", "/var/lib/p.db"),
        ("sqlite:////var/lib/p.db", "/var/lib/p.db"),
        ("sqlite:/var/lib/p.db", "/var/lib/p.db"),
        ("sqlite:./p.db", os.path.abspath("p.db")),
        ("sqlite:p.db", os.path.abspath("p.db")),
    ],
)
def test_a_database_url_names_a_file(write: Write, url: str, path: str) -> None:
    """One slash or three mean an absolute path, none a relative one, of which every error names the absolute one."""
    assert loaded(write(f'[store]\nurl = "{url}"')).store.path == path


def test_all_problems_come_at_once_with_their_lines(write: Write) -> None:
    """One run shows everything that is wrong, in the order of the file, each with place, key and what to do."""
    assert problems(
        write(
            """\
[site]
domain = ["example.org"]
networks = [
  "192.0.2.1/24",
  "nowhere",
]
[server]
deadline = "5 seconds"
fail = { submission = "drop" }
decisions = "90d"
[tiers]
default = "neu"
[tier.new]
limits = ["20 recipents per 1h"]
[[check]]
use = "quotas"
[[check]]
use = "quota"
per = "mailbox"
onbreach = "defer"
[dsn]
timeout = "2s"
"""
        )
    ) == [
        "policyd.toml:2: site.domain: unknown key; did you mean domains?",
        "policyd.toml:4: site.networks[1]: '192.0.2.1/24' has host bits set; write 192.0.2.0/24",
        "policyd.toml:5: site.networks[2]: 'nowhere' is no IP address or network",
        "policyd.toml:8: server.deadline: '5 seconds' is no duration; write 30s, 5m, 1h, 1h30m, 7d or 2w",
        "policyd.toml:9: server.fail.submission: 'drop' is none of defer, dunno, reject",
        "policyd.toml:10: server.decisions: unknown key; it belongs to [keep]",
        "policyd.toml:12: tiers.default: there is no tier 'neu'; the tiers are new",
        (
            "policyd.toml:14: tier.new.limits[1]: 'recipents' in '20 recipents per 1h' is no unit; "
            "use messages, recipients or bytes"
        ),
        f"policyd.toml:16: check \"quotas\" use: there is no check 'quotas'; policyd has {', '.join(checks.names())}",
        "policyd.toml:19: check \"quota\" per: 'mailbox' is none of user, user-domain, sender, sender-domain, client, server",
        'policyd.toml:20: check "quota" onbreach: unknown key; did you mean on_breach?',
        "policyd.toml:21: dsn: unknown key; did you mean dns?",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("site = 5", "1: site: must be a section; write [site]"),
        ("[[server]]", "1: server: must be a section; write [server]"),
        ("[check]\nuse = 'bans'", "1: check: must be written with two brackets, [[check]]"),
        ("check = [1]", "1: check 1: must be a table; write [[check]]"),
        ("[[check]]\nmode = 'off'", "1: check 1: use is missing"),
        ("[[check]]\nuse = 5", "2: check 1 use: must be a text in quotes"),
        ("[[check]]\nuse = 'bans'\nname = '*'", "3: check \"*\" name: '*' is no name; use small letters"),
        (
            "[[check]]\nuse = 'bans'\n[[check]]\nuse = 'bans'",
            '3: check "bans": a check of this name stands at',
        ),
        ("[tier]\nnew = 5", "2: tier.new: must be a section; write [tier.new]"),
        ("[tier.new]", "1: tiers.default: is missing; write default = "),
        (
            "[tiers]\ndefault = 'x'",
            "2: tiers.default: there is no tier 'x'; the tiers are none; add [tier.NAME]",
        ),
        ("[tiers]\ndefault = ''\n[tier.'A b']", "3: tier.'A b': is no name"),
        (
            "[tiers]\ndefault = ''\n[tier.a]\nmembers = ['X@y']\n[tier.b]\nmembers = ['x@Y']",
            "6: tier.b.members: x@y is a member of tier a too; remove one",
        ),
        (
            "[tiers]\ndefault = ''\n[tier.a]\nlimits = ['1 messages per 60m', '2 messages per 1h']",
            "4: tier.a.limits: a second limit for the window of '2 messages per 1h'",
        ),
        (
            "[server]\nlisten = 'x'",
            '2: server.listen: must be a list; write listen = ["inet:127.0.0.1:10047"]',
        ),
        ("[server]\nlisten = []", "2: server.listen: is empty"),
        ("[server]\nlisten = [5]", "2: server.listen[1]: must be a text in quotes or a table with address"),
        ("[server]\nlisten = [{ label = 'x' }]", "2: server.listen[1]: address is missing"),
        (
            "[server]\nlisten = ['127.0.0.1:10047']",
            "2: server.listen[1]: '127.0.0.1:10047' is no address; write inet:",
        ),
        ("[server]\nlisten = ['/run/x']", "write unix:/run/x"),
        ("[server]\nlisten = ['localhost:1']", "write inet:localhost:1"),
        ("[server]\nlisten = ['inet:10047']", "needs an IP address and a port; write inet:127.0.0.1:10047"),
        ("[server]\nlisten = ['inet:::1:10047']", "write inet:127.0.0.1:10047 or inet:[::1]:10047"),
        ("[server]\nlisten = ['inet:127.0.0.1:x']", "has no port from 0 to 65535"),
        ("[server]\nlisten = ['inet:127.0.0.1:65536']", "has no port from 0 to 65535"),
        ("[server]\nlisten = ['unix:run/x']", "needs an absolute path"),
        (f"[server]\nlisten = ['unix:/{'x' * 107}']", "needs an absolute path of at most 107 bytes"),
        ("[server]\nlisten = ['systemd:a b']", "names no socket; write systemd:NAME"),
        ("[server]\nlisten = ['inte:127.0.0.1:1']", "'inte' is no kind of address"),
        (
            "[server]\nlisten = [\n'inet:127.0.0.1:1',\n'inet:0.0.0.0:10047']",
            "4: server.listen[2]: inet:0.0.0.0:10047 can be reached from elsewhere; write { address = ",
        ),
        ("[server]\nlisten = ['inet:[2001:db8::1]:10047']", "can be reached from elsewhere"),
        ("[server]\nlisten = ['unix:/a', 'unix:/a']", "unix:/a is listed already, as listen[1]"),
        (
            "[server]\nlisten = [{address='unix:/a', label='x'}, {address='unix:/b', label='x'}]",
            "server.listen[2]: the label 'x' is that of listen[1] too",
        ),
        (
            "[server]\nlisten = [{address='inet:127.0.0.1:1', mode='0600'}]",
            "mode: means nothing for inet:127.0.0.1:1",
        ),
        (
            "[server]\nlisten = [{address='unix:/a', allow_from=['::1']}]",
            "allow_from: means nothing for unix:/a",
        ),
        (
            "[server]\nlisten = [{address='unix:/a', mode=660}]",
            "660 is no mode of a file; write it in quotes",
        ),
        (
            "[[server.listen]]\naddress='unix:/a'\nmod='0660'",
            "3: server.listen[1].mod: unknown key; did you mean mode?",
        ),
        ("[server]\ndeadline = '2h'", "2: server.deadline: '2h' is outside 1s to 90s"),
        ("[server]\ndeadline = '999ms'", "2: server.deadline: '999ms' is outside 1s to 90s"),
        (
            "[[check]]\nuse = 'quota'\n[[check]]\nuse = 'quota'\nname = 'rcpt'\nfor = 'submission'\ncount_at = 'rcpt'",
            "3: check \"rcpt\": counts the same mail per user as check 'quota' at policyd.toml:1, but at another stage",
        ),
        ("[server]\nmax_connections = 0", "0 is outside 1 to 1000000"),
        ("[server]\nfail = 'defer'", "2: server.fail: must be a table { ... } of submission, mx"),
        ("[server.fail]\nmxs = 'defer'", "2: server.fail.mxs: unknown key; did you mean mx?"),
        ("[store]\nurl = 'postgresql://x'", "is no database that this version knows"),
        ("[store]\nurl = 'sqlite://host/x'", "names a host"),
        ("[store]\nurl = 'sqlite::memory:'", "must be a plain file"),
        ("[store]\nurl = 'sqlite:///x?mode=ro'", "must be a plain file"),
        ("[store]\nurl = 'sqlite:'", "is no file name"),
        ('[store]\nurl = "sqlite:a\\u0000b"', "is no file name"),
        (
            "[log]\ndecisions = ['syslog:mial']",
            "2: log.decisions[1]: 'mial' is no facility of syslog; use mail",
        ),
        ("[log]\ndecisions = ['/var/log/x']", "is no place for the log"),
        ("[keep]\ndecisions = '5m'", "'5m' is outside 1h to 100 years"),
        ("[keep]\nmax_size = 5", "2: keep.max_size: must be a text in quotes, not a number"),
        (
            "[dns]\nnameservers = ['ns.example.org']",
            "2: dns.nameservers[1]: 'ns.example.org' is no nameserver; write the address of one, as 127.0.0.1:53 or [::1]:53",
        ),
        ("[dns]\nnameservers = ['127.0.0.1', '::1:53']", "'::1:53' is no nameserver"),
        ("[dns]\nnameservers = ['[127.0.0.1]']", "'[127.0.0.1]' is no nameserver"),
        ("[dns]\nnameservers = ['127.0.0.1:']", "'127.0.0.1:' is no nameserver"),
        ("[dns]\nnameservers = ['']", "'' is no nameserver"),
        ("[dns]\nnameservers = ['127.0.0.1:0']", "has no port from 1 to 65535; write 127.0.0.1:53"),
        ("[dns]\nnameservers = ['[::1]:99999']", "has no port from 1 to 65535; write [::1]:53"),
        ("[dns]\nnameservers = ['0.0.0.0']", "'0.0.0.0' is nobody's address"),
        ("[dns]\nnameservers = ['224.0.0.251:5353']", "'224.0.0.251:5353' is nobody's address"),
        ("[dns]\nnameservers = ['127.0.0.1', '127.0.0.1:53']", "127.0.0.1:53 is listed twice; keep one"),
        ("[dns]\nnameservers = '127.0.0.1'", "2: dns.nameservers: must be a list [...], not a text"),
        ("[dns]\nnameservers = [53]", "must be a text in quotes, not a number"),
        ("[dns]\ntimeout = '1m'", "'1m' is outside 100ms to 30s"),
        ("[dns]\ncache_size = '1KB'", "'1KB' is outside 1MB to 1000GB; write 32MB"),
        ("[site]\ndomains = ['a@b']", "2: site.domains[1]: 'a@b' is no domain"),
        ("[site]\ndomains = ['*.example.org']", "2: site.domains[1]: '*.example.org' is no domain"),
        ("[site]\ndefault_domain = 'a=b'", "2: site.default_domain: 'a=b' is no domain"),
        (
            "[site]\ncertificates = ['alice']",
            "2: site.certificates[1]: 'alice' is no fingerprint; write it as",
        ),
        ("domains = ['a']\n[site]", "1: domains: unknown key; it belongs to [site]"),
        ("[tiers]\ndefault = ''\n[tier.a]\nmembers = ['a b']", "'a b' is no login"),
        ("[a]\n[site]\nx = \n", "3: no valid TOML: Invalid value"),
        ("[site]\nx = [1,", "2: no valid TOML: "),
        (
            "[site]\ndomains = ['a']\n\ndomains = ['b']",
            "4: site.domains: is already set at policyd.toml:2; keep one",
        ),
        ("[site]\n[log]\n[site]", "3: [site]: is already set at policyd.toml:1; keep one"),
        ("[site]\nfail.x = 1\nx = 1" + "1" * 5000, "no valid TOML: "),
        ("x = " + "[" * 5000, "is nested too deeply"),
    ],
)
def test_a_mistake_is_named(write: Write, text: str, problem: str) -> None:
    """Each mistake gives a line with its place and the remedy; nothing is guessed or passed over."""
    found = problems(write(text))
    assert any(problem in line for line in found), found
    assert all(line.startswith("policyd.toml:") and "\n" not in line for line in found)


def test_a_hostile_key_stays_on_one_line(write: Write) -> None:
    """Line ends and control characters from the file cannot forge a second line of output."""
    (found,) = problems(write('"a\\nb\\u001b[1m" = 1'))
    assert found.isprintable()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[site]\n\xff\n", "policyd.toml:2: is not UTF-8 (invalid start byte); save the file as UTF-8"),
        (b"[site]\n\n\0", "policyd.toml:3: holds a NUL byte and so is no text; restore the file"),
    ],
)
def test_a_file_that_is_no_text_gets_one_clear_line(tmp_path: Path, content: bytes, problem: str) -> None:
    """Bad bytes are named with their line."""
    path = tmp_path / "policyd.toml"
    path.write_bytes(content)
    assert problems(path) == [problem]


def test_a_byte_order_mark_and_dos_line_ends_are_taken(tmp_path: Path) -> None:
    """What an editor elsewhere adds does no harm, and the lines still agree."""
    path = tmp_path / "policyd.toml"
    path.write_bytes(b'\xef\xbb\xbf[site]\r\ndefault_domain = "a.example"\r\n')
    assert loaded(path).site.default_domain == "a.example"
    path.write_bytes(b"\xef\xbb\xbf[site]\r\n\r\nx = 1\r\n")
    assert problems(path)[0].startswith("policyd.toml:3: site.x: unknown key")


def test_a_file_that_cannot_be_read_says_why_and_what_to_do(tmp_path: Path) -> None:
    """Path, reason, remedy; for a missing file and for a directory."""
    assert problems(tmp_path / "none.toml") == [
        "none.toml: there is no such file; create it, or name another with --config"
    ]
    assert problems(Path("a\0b")) == [r"a\x00b: is no file name; name another with --config"]
    os.mkfifo(tmp_path / "pipe")
    assert problems(tmp_path / "pipe") == ["pipe: is a pipe or a device; name a file with --config"]
    (tmp_path / "dir").mkdir()
    assert problems(tmp_path / "dir") == ["dir: is a directory; name the file in it with --config"]


def test_a_file_without_permission_says_so(tmp_path: Path) -> None:
    """As a user who may not read it; tried in a process that gives up root first, where the suite runs as root."""
    path = tmp_path / "policyd.toml"
    path.write_text("")
    path.chmod(0)
    program = (
        "import os, sys\n"
        "from policyd import checks\n"
        "from policyd.config import load\n"
        "from policyd.errors import ConfigError\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)\n"
        "if os.geteuid() == 0: os.chmod(fd, 0o755); os.fchdir(fd); os.setgroups([]); os.setuid(65534)\n"
        "else: os.fchdir(fd)\n"
        "try: load('policyd.toml', checks.options_of)\n"
        "except ConfigError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path.cwd(),
    )
    assert run.stdout == (
        "policyd.toml: no permission to read it; run as root or as its owner, or correct the rights of file and directory\n"
    ), run.stderr


@dataclass(frozen=True)
class NeedsLevel:
    level: int = setting(whole, help="A level.")


def test_a_required_option_of_a_check_is_asked_for(write: Write) -> None:
    """A check's own keys are read like all others: required ones, defaults, and unknown ones."""
    path = write("[[check]]\nuse = 'x'\n[[check]]\nuse = 'x'\nname = 'y'\nlevel = 3\nlevels = 4\n")
    with pytest.raises(ConfigError) as caught:
        load(path, lambda use: NeedsLevel)
    assert [text.partition("policyd.toml:")[2] for text in caught.value.problems] == [
        '1: check "x": level is missing; add level = ... (A level)',
        '7: check "y" levels: unknown key; did you mean level?',
    ]


def test_a_check_from_elsewhere_needs_a_name(write: Write) -> None:
    """A dotted path finds the module, and is no name for logs and commands."""
    path = write("[[check]]\nuse = 'site.level'\nlevel = 1\n")
    with pytest.raises(ConfigError, match=r"'site\.level' is no name; add name ="):
        load(path, lambda use: NeedsLevel)


POLICY = """
[site]
domains = ["a.example", "b.example"]
[tiers]
default = "new"
[tier.new]
limits = ["20 recipients per 1h"]
members = ["x@a.example", "y@a.example"]
[[check]]
use = "bans"
[[check]]
use = "quota"
"""


def test_the_policy_version_is_of_the_policy_alone(write: Write) -> None:
    """Order of keys, comments, spelling and written-out defaults do not change it; nor do server, store, log, keep and dns."""
    version = loaded(write(POLICY)).policy_version
    assert len(version) == 8
    assert int(version, 16) >= 0
    same = """
# other order, same policy
[tier.new]
members = ["Y@a.example", "x@A.example"]
limits = ["20 recipients per 60m"]
[server]
deadline = "3s"
[store]
durability = "normal"
[log]
decisions = []
[keep]
decisions = "7d"
[dns]
timeout = "1s"
[[check]]
for = "any"
use = "bans"
[[check]]
on_error = "skip"
use = "quota"
mode = "enforce"
per = "user"
[tiers]
default = "new"
[site]
domains = ["B.example", "a.example"]
"""
    assert loaded(write(same)).policy_version == version


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"a.example", ', ""),
        ("20 recipients", "21 recipients"),
        ('"x@a.example", ', ""),
        ('use = "quota"', 'use = "quota"\nmode = "shadow"'),
        ('use = "quota"', 'use = "quota"\non_breach = "reject"'),
        ('use = "bans"\n[[check]]\nuse = "quota"', 'use = "quota"\n[[check]]\nuse = "bans"'),
        ('default = "new"', 'default = ""'),
    ],
)
def test_the_policy_version_tells_policies_apart(write: Write, old: str, new: str) -> None:
    """Whatever may change a decision changes the version."""
    assert old in POLICY
    assert loaded(write(POLICY)).policy_version != loaded(write(POLICY.replace(old, new))).policy_version


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"per": "user"}, {"per": "user-domain", "limits": ["5 messages per 1h"]}),
        ({"count": "all"}, {"count": "external"}),
        ({"per": "client", "for": "submission"}, {"per": "client", "for": "mx"}),
        ({"per": "client", "for": "any"}, {"per": "client", "for": "mx"}),
        ({"count_at": "rcpt"}, {"count_at": "rcpt"}),
    ],
)
def test_quotas_with_counters_of_their_own_may_count_at_different_stages(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """Only one counter must not be fed from two stages."""
    text = ""
    for name, given in (("one", first), ("two", second)):
        table = {
            "limits": ["5 messages per 1h"],
            "count_at": "rcpt" if name == "two" else "end-of-message",
        } | given
        text += f"[[check]]\nuse = 'quota'\nname = '{name}'\n"
        text += "".join(f"{key} = {value!r}\n" for key, value in table.items())
    path = tmp_path / "policyd.toml"
    path.write_text(text)
    assert len(load(path, checks.options_of).checks) == 2
