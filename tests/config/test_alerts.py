"""[alerts] and [[alert]]: what is taken, what each channel is called, and every error with its place and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyd.checks import options_of
from policyd.config import doubts, load
from policyd.errors import ConfigError


def read(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policyd.toml"
    path.write_text(text)
    return path


def alert(to: str, more: str = "") -> str:
    return f'[[alert]]\nto = "{to}"\n{more}\n'


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("mailto:root", "mailto:root"),
        ("mailto:admin+policyd@example.org", "mailto:admin+policyd@example.org"),
        ("https://hooks.example.org/T0/B0/secret?token=secret", "hooks.example.org"),
        ("http://127.0.0.1:8080/x", "127.0.0.1"),
        ("http://[::1]/x", "::1"),
        ("http://localhost/", "localhost"),
        ("exec:/usr/local/bin/page-me", "exec:/usr/local/bin/page-me"),
        ("syslog:local3", "syslog:local3"),
        ("journal", "journal"),
    ],
)
def test_every_kind_of_channel(tmp_path: Path, to: str, name: str) -> None:
    """The name is not more of a URL than its host: the rest may be its password."""
    (channel,) = load(read(tmp_path, alert(to)), options_of).channels
    assert (channel.to, channel.name, channel.on, channel.repeat_after) == (to, name, (), 6 * 3_600_000)


@pytest.mark.parametrize(
    "to",
    [
        *(
            "",
            "root",
            "root@example.org",
            "mailto:",
            "mailto:a b",
            "mailto:a@b@c",
            "mailto:-f@x",
            "mailto:a\\nb",
        ),
        *(
            "http://example.org/",
            "http://127.0.0.1.example.org/",
            "https://",
            "https:///x",
            "https://u:p@example.org/",
        ),
        *(
            "https://example.org/#x",
            "https://example.org/a b",
            "https://example.org:99999/",
            "https://ex\\u00e4mple.org/",
        ),
        *(
            "exec:page-me",
            "exec:/",
            "exec:",
            "exec:bin/page",
            "syslog:",
            "syslog:news",
            "ftp://example.org/",
            "journal:x",
        ),
    ],
)
def test_what_is_no_channel(tmp_path: Path, to: str) -> None:
    """Told with file, line and what to write instead."""
    with pytest.raises(ConfigError) as error:
        load(read(tmp_path, alert(to)), options_of)
    (problem,) = error.value.problems
    assert problem.startswith(f"{tmp_path}/policyd.toml:2: alert[1].to: ")
    assert any(word in problem for word in ("write", "use "))


def test_a_url_is_not_shown_whole_in_an_error(tmp_path: Path) -> None:
    """It may be the password of the channel."""
    with pytest.raises(ConfigError) as error:
        load(
            read(tmp_path, alert("http://example.org/hooks/T00000000/B00000000/VerySecretToken")), options_of
        )
    assert "VerySecretToken" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (alert("mailto:root", 'on = ["suspended"]'), "did you mean suspend?"),
        (alert("mailto:root", 'repeat_after = "1s"'), "1m to 366d"),
        (alert("mailto:root", 'secret_file = "/x"'), "means nothing for mailto:root"),
        (alert("https://example.org/", 'secret_file = "x"'), "begin it with /"),
        (alert("mailto:root", 'onn = ["detect"]'), "did you mean on?"),
        (alert("mailto:root", 'smtp = "127.0.0.1:25"'), "it belongs to [alerts]"),
        (alert("mailto:root") * 2, 'as name = "second"'),
        ('[alert]\nto = "mailto:root"', "two brackets"),
        ("[[alert]]\non = []", "to is missing"),
        ('[alerts]\nsmtp = "localhost"', "write host and port"),
        ('[alerts]\nsmtp = "::1:25"', "brackets"),
        ('[alerts]\ntimeout = "5m"', "1s to 60s"),
        ('[alerts]\nnot_asked = "1s"', 'leave "not-asked" out'),
        ('[alerts]\nsender = "two words"', "no mail address"),
    ],
)
def test_what_is_wrong(tmp_path: Path, text: str, told: str) -> None:
    """Each error says where and what to do."""
    with pytest.raises(ConfigError) as error:
        load(read(tmp_path, text), options_of)
    assert told in str(error.value)
    assert all(problem.startswith(f"{tmp_path}/policyd.toml") for problem in error.value.problems)


def test_a_secret_that_everybody_can_read_is_told(tmp_path: Path) -> None:
    """And one that is not there; neither is an error, since who checks the file need not be policyd."""
    secret = tmp_path / "secret"
    config = load(read(tmp_path, alert("https://example.org/", f'secret_file = "{secret}"')), options_of)
    assert "No such file" in doubts(config)[0]
    secret.touch(mode=0o644)
    secret.chmod(0o644)
    assert "open to everybody" in doubts(config)[0]
    secret.chmod(0o640)
    assert not [line for line in doubts(config) if "secret" in line]
