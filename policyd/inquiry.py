"""What goes along a chain with one request: how long it may wait, and what the checks before have found."""

from __future__ import annotations

import math

#: What a check found out, for the checks after it (``when``): a score, a result.
Finding = str | int


class Inquiry:
    """One request's way along the chain."""

    __slots__ = ("due", "findings")

    def __init__(self, due: float = math.inf) -> None:
        #: When a check that waits has to go on with what it knows (``time.monotonic()``, s).
        self.due = due
        #: By the check's name, what each before found; shadow ones too, they decide like all.
        self.findings: dict[str, Finding] = {}
