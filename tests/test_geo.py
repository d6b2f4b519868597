"""Countries of addresses: by a real database of MaxMind's format, and nothing without one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from policyd.detectors import Surroundings
from policyd.geo import countries, trouble
from tests.fakes import SITE
from tests.mmdb import country_database
from tests.test_watch import detect, ledger, sends


@pytest.fixture
def database(tmp_path: Path) -> str:
    path = tmp_path / "countries.mmdb"
    path.write_bytes(country_database({"198.51.1.0/24": "AT", "198.51.2.0/24": "DE", "198.51.3.0/24": "FR"}))
    return str(path)


def test_a_login_in_too_many_countries_is_suspended(database: str) -> None:
    """Each country is one, however many networks it has; what is in no country does not count."""
    around = Surroundings(SITE, country_of=countries(database))
    made = ledger(detect("more than 2 countries per user in 1h", around=around))
    for client in ("198.51.1.7", "198.51.1.9", "203.0.113.1", "unknown", "2001:db8::1", "198.51.2.1"):
        assert sends(made, "bob@example.net", client_address=client).verdict == "pass"
    settled = sends(made, "bob@example.net", client_address="198.51.3.1")
    assert settled.reason == "suspended: 3 countries, more than 2 in 1h"


def test_without_a_sound_database_nothing_is_found_and_it_is_told(
    tmp_path: Path, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No file, another file, a directory: one line, and mail goes on."""
    (tmp_path / "other").write_text("no database")
    assert trouble(database) == ""
    with caplog.at_level(logging.WARNING):
        for name in ("missing", "other", "."):
            path = str(tmp_path / name)
            assert path in trouble(path)
            assert countries(path)("198.51.1.7") == ""
    assert len(caplog.records) == 3
    assert countries("")("198.51.1.7") == ""
