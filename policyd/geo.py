"""The country of an address, by a database of MaxMind's format, where the module maxminddb and the file are at hand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

from policyd.detectors import no_country

log = logging.getLogger("policyd")


def trouble(path: str) -> str:
    """Why nothing can be said of countries with the database ``path``; empty when it can."""
    try:
        _open(path)
    except ImportError:
        return "the Python module maxminddb is not installed (Debian: python3-maxminddb)"
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {error}"
    return ""


def countries(path: str) -> Callable[[str], str]:
    """A function from an address to its country, as ISO 3166-1 alpha-2; empty where it is not known."""
    if not path:
        return no_country
    try:
        get = _open(path)
    except (ImportError, OSError, ValueError) as error:
        log.warning("[site] country_database: %s; detectors of countries find nothing", error)
        return no_country

    @lru_cache(maxsize=4096)
    def country_of(address: str) -> str:
        try:
            found = get(address)
        except ValueError:
            return ""
        country = found.get("country") if isinstance(found, dict) else None
        code = country.get("iso_code") if isinstance(country, dict) else None
        return code[:2] if isinstance(code, str) else ""

    return country_of


def _open(path: str) -> Callable[[str], object]:
    import maxminddb  # type: ignore[import-not-found, unused-ignore]  # optional

    try:
        get: Callable[[str], object] = maxminddb.open_database(path, maxminddb.MODE_MEMORY).get
    except maxminddb.InvalidDatabaseError as error:
        raise ValueError(str(error)) from None
    return get
