"""A check for the tests: refuses the messages whose size says so, and marks the others, so that answers can be told apart."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from policyd.answer import make_answer
from policyd.checks import Context
from policyd.opinion import Opinion
from policyd.request import Request
from policyd.settings import setting, whole


@dataclass(frozen=True)
class Options:
    """The section of the check."""

    every: int = setting(whole, 3, help="Refuse the sizes that this divides; 0: none.")
    echo: int = setting(
        whole, 0, help="Let the others pass with an answer of so many characters made from the instance."
    )


class Check:
    """Asked at every stage."""

    stages: ClassVar[frozenset[str]] = frozenset()
    steadfast: ClassVar[bool] = False
    needs: ClassVar[Mapping[str, frozenset[str]]] = {}

    def __init__(self, options: Any, context: Context) -> None:
        self._options = options

    async def check(self, request: Request, now: int, steering: object, inquiry: object) -> Opinion | None:
        """A refusal of every third size; an echo of the instance if that is wanted."""
        if self._options.every and request.size % self._options.every == 0:
            return Opinion(make_answer("550", "5.7.1 Every third is refused"), "every third")
        if self._options.echo:
            return Opinion(make_answer("HOLD", echo(request.instance, self._options.echo)), "echo")
        return None


def echo(instance: str, length: int = 0) -> str:
    """What the answer to a request of this instance says."""
    return f"echo {zlib.crc32(instance.encode()):08x}".ljust(length, ".")
