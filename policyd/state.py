"""What a decision works on: what is counted, remembered and known, as the decisions before it left it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from policyd.accounts import Account
from policyd.decision import Earlier
from policyd.opinion import CounterKey, Memory, MemoryKey
from policyd.request import Request
from policyd.steering import Steering, Suspension
from policyd.window import Counter


class Siblings(Protocol):
    """Who knows what was decided of a mail before."""

    def siblings(self, request: Request) -> Sequence[Earlier]:
        """The decisions at RCPT of the same instance and listener."""


class State(Protocol):
    """What one batch of operations works on."""

    steering: Steering

    def counter(self, key: CounterKey) -> Counter:
        """The counter of ``key``, as the operations before this one left it; an empty one when there is none."""

    def charge(self, key: CounterKey, widths: tuple[int, ...], amount: int, at: int) -> None:
        """Add ``amount`` (negative: take back) at ledger time ``at`` to the counter of ``key``, kept in ``widths`` too."""

    def earlier(self, request: Request) -> Earlier | None:
        """The newest decision on the same request (listener, instance, stage, recipient at RCPT) of the last hour."""

    def siblings(self, request: Request) -> Sequence[Earlier]:
        """The decisions at RCPT of the same instance and listener."""

    def remembered(self, keys: Iterable[MemoryKey], now: int) -> Mapping[MemoryKey, Memory]:
        """Those of ``keys`` that are remembered and have not expired at ledger time ``now``."""

    def remember(self, key: MemoryKey, fact: Memory) -> None:
        """Remember ``fact``; operations after this one see it."""

    def next_ref(self) -> str:
        """A reference that was not given out before."""

    def account(self, user: str) -> Account:
        """What is known of an account; not to be changed."""

    def change(self, user: str) -> Account:
        """The same, to be changed and written."""

    def strangers(self, user: str, recipients: Sequence[str]) -> list[str]:
        """Those of the folded ``recipients`` that ``user`` has not written to."""

    def meet(self, user: str, recipients: Sequence[str], day: int) -> None:
        """Remember that ``user`` has written to ``recipients`` on this day."""

    def suspend(self, row: Suspension) -> None:
        """Write a suspension; it binds the next operation."""

    def tell(self, kind: str, subject: str, facts: Mapping[str, Any], once: int = 0) -> None:
        """Write an event.

        :param once: not if the same kind was told of the same subject so many ms ago or less.
        """

    def record(self, action: str, subject: str, detail: str) -> None:
        """Write a row of history."""

    def next_id(self) -> int:
        """The number that the decision under way will have."""
