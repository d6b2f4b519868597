"""How the files that the process may open are shared: Postfix's connections, questions to the DNS, database and logs."""

from __future__ import annotations

#: For the database, the logs and the loop itself.
OWN = 32


def for_dns(files: int) -> int:
    """Of ``files`` in all, those for questions that are under way; each holds one for each nameserver it was put to."""
    return files // 4


def for_connections(files: int) -> int:
    """Of ``files`` in all, those for connections."""
    return max(1, files - for_dns(files) - OWN)
