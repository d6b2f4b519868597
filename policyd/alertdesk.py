"""Alerts in the running daemon: takes what happens, has it written down, and sends it. Nothing that is answered waits for it.

The loop keeps the book; the writer's thread puts it on disk between two batches; each channel has a thread of its own. An alert
is sent when it is on disk, and never again once the channel has said that it has it and that is on disk too. While the
database is in trouble all goes on from memory.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

from policyd.alert import GIVEN_UP, Alert, Event
from policyd.alertbook import Book, Changes, Channel
from policyd.alerts import Deliver, Sent
from policyd.alerts.courier import Courier
from policyd.alertwatch import KINDS, State, Watch
from policyd.store.alerts import Exchange, Found, event_row, rows_of
from policyd.units import HOUR, MINUTE, format_duration

log = logging.getLogger("policyd.alerts")

#: Between two looks at what happened and what is due, s.
LOOK = 1.0
#: Between two alerts to one channel, s: what has gathered must press neither the channel nor the disk.
PACE = 0.1
#: How long the end waits for a channel that has something in hand, s.
ENDING = 3.0
#: The writer is said to hang when a short job takes so long, ms.
HANGS = 10_000
#: Alerts of the daemon's own that wait to be written at the most.
MOST_PENDING = 1_000
#: Between two removals of old rows, ms.
PRUNE = HOUR

T = TypeVar("T")


class Store(Protocol):
    """What is needed of the writer."""

    @property
    def sick(self) -> str:
        """What is wrong with the database."""

    def do(self, job: Callable[[Any], T], done: Callable[[T | None], None]) -> None:
        """Run a job on the connection."""


class AlertDesk:
    """One for the daemon."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        store: Store,
        now: Callable[[], int],
        wall: Callable[[], int],
        states: Callable[[], Iterable[State]] = tuple,
    ) -> None:
        """
        :param now: ledger time, ms.
        :param states: how the daemon's parts are.
        """
        self._loop, self._store, self._now, self._wall, self._states = loop, store, now, wall, states
        self.book = Book()
        self._watch = Watch()
        self._couriers: dict[str, tuple[object, Courier]] = {}
        #: The daemon's own, not on disk yet.
        self._pending: list[Event] = []
        self._loaded = False
        #: Whether the last exchange worked: what it made can be sent.
        self._works = True
        #: Since when an exchange is under way, ledger time; 0: none is.
        self._exchanging = 0
        self._again = False
        self._cursor = self._taken = 0
        self._next_prune = self._next_expiry = 0
        self._ending = False
        self._failures: dict[str, int] = {}
        #: The uids of what couriers have in hand, and when each channel is sent the next.
        self._in_hand: set[str] = set()
        self._free_at: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()

    def configure(self, channels: Mapping[Channel, tuple[object, Deliver]]) -> None:
        """From now on these are the channels; one whose mark is the same goes on."""
        self.book.configure(channels)
        marks = {channel.name: mark for channel, (mark, _) in channels.items()}
        for name, (mark, courier) in list(self._couriers.items()):
            if marks.get(name) != mark:
                courier.end()
                del self._couriers[name]
        for channel, (mark, deliver) in channels.items():
            if channel.name not in self._couriers:
                done = partial(self._back, channel.name)
                self._couriers[channel.name] = mark, Courier(channel.name, deliver, done)

    def start(self) -> None:
        """Begin."""
        self._tick()

    async def stop(self) -> None:
        """End: wait a little for what is under way, and have all that is known written."""
        if self._timer is not None:
            self._timer.cancel()
        self._ending = True
        until = self._loop.time() + ENDING
        for _, courier in self._couriers.values():
            courier.end()
        # What a channel has taken must not be forgotten: it would be sent again after the start.
        while self._loop.time() < until and (self._exchanging or self._sending()):
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), max(0.0, until - self._loop.time()))
            except TimeoutError:
                break
        if self._sending():
            log.warning(
                "alerts: ending while %s; it is sent again after the start", " and ".join(self._sending())
            )
        self._couriers.clear()

    def _sending(self) -> list[str]:
        return [f"{name} has one in hand" for name, (_, courier) in self._couriers.items() if courier.has]

    @property
    def hangs(self) -> str:
        """What is wrong when the writer does not come back; empty when nothing is."""
        since = self._exchanging
        return "the disk does not answer" if since and self._now() - since > HANGS else ""

    def replaced(self) -> None:
        """The database is another file now."""
        self._cursor = self._taken = 0
        self.book.write_anew()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(LOOK, self._tick)
        try:
            now = self._now()
            self._look(now)
            if now >= self._next_expiry:
                self._next_expiry = now + MINUTE
                for alert in self.book.expire(now):
                    self._given_up(alert)
            self._exchange()
        except Exception:  # what is told must not end with one defect
            log.exception("alerts failed; they go on")

    def _look(self, now: int) -> None:
        """See what of the daemon's own is in trouble, and what is not any more."""
        # What was told before the start is known only after it was read.
        for event in self._watch.look(self._states(), self.book.is_open(KINDS), now, self._wall()):
            if len(self._pending) < MOST_PENDING:
                self._pending.append(event)
        pending = {(event.kind, event.subject) for event in self._pending}
        for key, event in self._watch.active.items():
            if key not in pending and self._loaded:
                self.book.lasts(event._replace(facts={**event.facts, "lasting": _since(now - event.at)}), now)

    # --- the database -----------------------------------------------------------------------------------------------

    def _exchange(self) -> None:
        """Have written what changed, and read what happened."""
        if self._exchanging:
            self._again = True
            if self.hangs:
                self._from_memory()
            return
        if self._store.sick:
            self._from_memory()
            return
        now = self._now()
        prune = now if now >= self._next_prune else 0
        if prune:
            self._next_prune = now + PRUNE
        events, self._pending = self._pending, []
        changes = self.book.changes()
        exchange = Exchange(
            [event_row(event) for event in events],
            rows_of(changes),
            self._cursor,
            self._taken,
            not self._loaded,
            prune,
        )
        self._exchanging, self._again = now, False
        self._store.do(exchange.run, partial(self._exchanged, events, changes))

    def _exchanged(self, events: list[Event], changes: Changes, found: Found | None) -> None:
        self._exchanging = 0
        self._works = found is not None
        try:
            if found is None:
                self.book.put_back(changes)
                self._pending = [*events, *self._pending]
                self._from_memory()
            else:
                self._found(found, changes)
        except Exception:  # the next occasion comes in a second
            log.exception("alerts failed; they go on")
        self._idle.set()

    def _found(self, found: Found, changes: Changes) -> None:
        now = self._now()
        self.book.written(changes)
        if found.stored is not None:
            self.book.restore(*found.stored)
            self._loaded = True
        self._cursor = self._taken = found.cursor
        for event in found.events:
            self.book.take(event, now)
            self._taken = event.id
        self._send()
        if found.events or self._again:
            self._exchange()

    def _from_memory(self) -> None:
        """The database cannot be written: what is known of is told all the same."""
        self._works = False
        now = self._now()
        events, self._pending = self._pending, []
        for event in events:
            self.book.take(event, now)
        self._send()

    # --- the channels -----------------------------------------------------------------------------------------------

    def _send(self) -> None:
        if self._ending:
            return
        now = self._now()
        for name, (_, courier) in self._couriers.items():
            if courier.has or self._loop.time() < self._free_at.get(name, 0.0):
                continue
            alert = self.book.due(name, now, unstored=not self._works)
            # A courier that a reload dismissed has it in hand, perhaps, and comes back yet.
            if alert is not None and alert.uid not in self._in_hand:
                self._in_hand.add(alert.uid)
                courier.send(alert)

    def _back(self, name: str, uid: str, sent: Sent) -> None:
        """A courier is back; on its thread."""
        try:
            self._loop.call_soon_threadsafe(self._done, name, uid, sent)
        except RuntimeError:
            # The loop has ended meanwhile: it is sent again after the start.
            return

    def _done(self, name: str, uid: str, sent: Sent) -> None:
        """A courier is back."""
        now = self._now()
        self._in_hand.discard(uid)
        self._free_at[name] = self._loop.time() + PACE
        self._loop.call_later(PACE, self._send)
        entry = self._couriers.get(name)
        if entry is not None and entry[1].has == uid:
            entry[1].has = ""
        alert = self.book.waiting.get(uid)
        if alert is not None:
            if not sent.error:
                self.book.sent(alert, now)
                self._told_sent(alert)
            elif sent.gone:
                self.book.gone(alert, sent.error, now)
                log.error(
                    "alert-stopped: channel %s %s; nothing more is sent there until 'policyctl alert retry %s'",
                    *(name, sent.error, name),
                )
            else:
                self.book.failed(alert, sent.error, now, random.random(), sent.retry_after)  # noqa: S311, no secret
                self._told_failed(alert, now)
        if self._timer is not None:
            self._exchange()
        self._idle.set()

    def _told_sent(self, alert: Alert) -> None:
        if self._failures.pop(alert.channel, 0):
            log.warning("alert-channel-well: channel %s takes alerts again", alert.channel)
        log.info("alert %s: %s %s told to %s", alert.uid, alert.kind, ascii(alert.subject), alert.channel)

    def _told_failed(self, alert: Alert, now: int) -> None:
        if alert.state == GIVEN_UP:
            self._given_up(alert)
            return
        count = self._failures[alert.channel] = self._failures.get(alert.channel, 0) + 1
        if count & (count - 1) == 0:
            log.error(
                "alert-failed: channel %s: %s (%d times so far); tried again in %s",
                *(
                    alert.channel,
                    alert.error,
                    count,
                    format_duration(max(1000, alert.next_try - now) // 1000 * 1000),
                ),
            )

    def _given_up(self, alert: Alert) -> None:
        log.error(
            "alert-lost: %s %s %s could not be told to %s for a week: %s",
            *(alert.uid, alert.kind, ascii(alert.subject), alert.channel, alert.error or "no such channel"),
        )


def _since(ms: int) -> str:
    return format_duration(max(1000, ms // 1000 * 1000))
