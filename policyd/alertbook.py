"""Which alerts are made of what happens, and which is to be sent now: repeats, floods, back-off. No clock, disk or socket.

All times are ledger time in ms and handed in. What changed is kept until :meth:`Book.changes` takes it, to be written down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from policyd.alert import GIVEN_UP, LASTING, RETRY, SENT, TEST, WAITS, Alert, Event, Told
from policyd.units import DAY, HOUR, MINUTE, SECOND

#: Alerts of one kind to one channel within so long that go out one by one; what comes beyond is told together.
SINGLY, SINGLY_WITHIN = 10, 10 * MINUTE
#: How long events are gathered before they are told together, and how many of them with all their facts.
GATHER, MOST_GATHERED = 5 * MINUTE, 50
#: How often something that began, was over and began again is told within ``repeat_after``.
FLAPS = 3
#: Alerts that wait for one channel at the most, one by one; beyond it they are gathered, and then counted.
MOST_WAITING = 1_000
#: Things that are remembered as told at the most, and for how long at least.
MOST_TOLD, REMEMBER = 20_000, 7 * DAY
#: The first pause after a failure, the longest of one alert, and of a whole channel, so that it is soon seen to work again.
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_SILENCE = 5 * SECOND, HOUR, 5 * MINUTE
#: An alert that could not be sent for so long is given up.
GIVE_UP = 7 * DAY


class Channel(NamedTuple):
    """Where alerts go, as far as the book must know."""

    name: str
    kinds: frozenset[str]
    repeat_after: int


class Changes(NamedTuple):
    """What is to be written down; ``None``: to be deleted."""

    alerts: dict[str, Alert]
    told: dict[tuple[str, str, str], Told | None]
    stopped: dict[str, tuple[int, str] | None]

    def __bool__(self) -> bool:
        return bool(self.alerts or self.told or self.stopped)


class Book:
    """All that is known of alerts that wait, and of what was told."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}
        #: Waiting alerts by uid, in the order in which they were made.
        self.waiting: dict[str, Alert] = {}
        self.told: dict[tuple[str, str, str], Told] = {}
        #: The same by channel, and what was told to begin and is not over, with the channels that know it: asked each second.
        self._of: dict[str, dict[str, Alert]] = {}
        self._open: dict[tuple[str, str], set[str]] = {}
        #: Channels that want nothing any more: when they said so, and what.
        self.stopped: dict[str, tuple[int, str]] = {}
        self._recent: dict[tuple[str, str], deque[int]] = {}
        #: Channel to (failures in a row, not before then).
        self._paused: dict[str, tuple[int, int]] = {}
        self._changes = Changes({}, {}, {})

    def configure(self, channels: Iterable[Channel]) -> None:
        """From now on these are the channels."""
        self._channels = {channel.name: channel for channel in channels}

    def restore(
        self,
        alerts: Iterable[Alert],
        told: Mapping[tuple[str, str, str], Told],
        stopped: Mapping[str, tuple[int, str]],
    ) -> None:
        """Take in what was written down before; what is known already is newer."""
        found = {alert.uid: alert for alert in alerts if alert.uid not in self._changes.alerts}
        self.waiting = {**found, **self.waiting}
        for alert in self.waiting.values():
            self._of.setdefault(alert.channel, {})[alert.uid] = alert
        self.told = {**told, **self.told}
        for key, each in self.told.items():
            self._set_open(key, each, each.open)
        self.stopped = {**stopped, **self.stopped}

    # --- what happens -----------------------------------------------------------------------------------------------

    def take(self, event: Event, now: int) -> list[Alert]:
        """Something happened: the alerts that are made of it, or that it joined."""
        if event.kind == RETRY:
            self.retry(event.subject, now)
            return []
        made = []
        for channel in self._channels.values():
            if event.kind == TEST:
                if event.subject in ("", channel.name):
                    # Who asks whether it works does not want to hear that it did not before.
                    self._paused.pop(channel.name, None)
                    made.append(self._add(channel, event, now, {}))
            elif event.kind in channel.kinds and (extra := self._worth(channel, event, now)) is not None:
                made.append(self._tell(channel, event, now, extra))
        return made

    def lasts(self, event: Event, now: int) -> list[Alert]:
        """What began, as ``event`` said, is not over: it is told again where that was long ago, or never done."""
        made = []
        for channel in self._channels.values():
            told = self.told.get((channel.name, event.kind, event.thing))
            if event.kind in channel.kinds and (told is None or now - told.at >= channel.repeat_after):
                made += [self._tell(channel, event, now, self._worth(channel, event, now) or {})]
        return made

    def is_open(self, kinds: Iterable[str]) -> list[tuple[str, str]]:
        """Of these kinds, what some channel was told began, and not yet that it is over."""
        wanted = frozenset(kinds)
        return [key for key in self._open if key[0] in wanted]

    def _set_open(self, key: tuple[str, str, str], told: Told, is_open: bool) -> None:
        told.open = is_open
        channel, *thing = key
        channels = self._open.setdefault((thing[0], thing[1]), set())
        (channels.add if is_open else channels.discard)(channel)
        if not channels:
            del self._open[thing[0], thing[1]]

    def _worth(self, channel: Channel, event: Event, now: int) -> dict[str, Any] | None:
        """Whether the channel is told: what is to be added to the facts, ``None`` if not."""
        key = channel.name, event.kind, event.thing
        told = self.told.get(key)
        if event.resolved:
            if told is None or not told.open:
                return None
            self._set_open(key, told, False)
            self._changes.told[key] = told
            return {}
        if told is not None and now - told.at < channel.repeat_after:
            again = event.kind in LASTING and not told.open and told.times < FLAPS
            if not again:
                told.held += 1
                self._changes.told[key] = told
                return None
        extra = {"times_before": told.held} if told is not None and told.held else {}
        if told is None:
            self._forget(now)
            told = self.told[key] = Told(now, event.kind in LASTING)
        else:
            told.times = told.times + 1 if now - told.at < channel.repeat_after else 1
            told.at, told.held = now, 0
        self._set_open(key, told, event.kind in LASTING)
        self._changes.told[key] = told
        return extra

    def _tell(self, channel: Channel, event: Event, now: int, extra: dict[str, Any]) -> Alert:
        recent = self._recent.setdefault((channel.name, event.kind), deque())
        while recent and now - recent[0] >= SINGLY_WITHIN:
            recent.popleft()
        waiting = self._of.setdefault(channel.name, {})
        crowded = len(waiting) >= MOST_WAITING
        if len(recent) < SINGLY and not crowded:
            recent.append(now)
            return self._add(channel, event, now, extra)
        for alert in reversed(waiting.values()):
            gathers = (alert.kind, alert.subject) == (event.kind, "")
            # One that was sent, perhaps, must not change any more; where there are too many it counts at least.
            if gathers and (crowded or (alert.tries == 0 and now < alert.next_try)):
                self._gather(alert, event, keep=alert.tries == 0)
                return alert
        gathered = self._new(channel, event, now, {"events": [], "left_out": 0})
        gathered.subject, gathered.resolved, gathered.count = "", False, 0
        gathered.next_try = now + GATHER
        self._gather(gathered, event, keep=True)
        return gathered

    def _gather(self, alert: Alert, event: Event, keep: bool) -> None:
        alert.count += 1
        if keep and len(alert.facts["events"]) < MOST_GATHERED:
            one = {"subject": event.subject, "resolved": event.resolved, "wall_at": event.wall_at}
            alert.facts["events"].append({**one, "facts": dict(event.facts)})
        else:
            alert.facts["left_out"] += 1
        self._changed(alert)

    def _add(self, channel: Channel, event: Event, now: int, extra: dict[str, Any]) -> Alert:
        alert = self._new(channel, event, now, {**event.facts, **extra})
        self._changed(alert)
        return alert

    def _new(self, channel: Channel, event: Event, now: int, facts: dict[str, Any]) -> Alert:
        uid = event.uid(channel.name)
        alert = Alert(
            *(uid, channel.name, event.kind, event.subject, event.resolved, facts),
            *(1, now, event.wall_at),
            next_try=now,
        )
        # What it told of is as new as before if the same is read once more: it keeps its tries.
        alert = self.waiting.setdefault(uid, alert)
        self._of.setdefault(channel.name, {})[uid] = alert
        return alert

    def _forget(self, now: int) -> None:
        if len(self.told) < MOST_TOLD:
            return
        longest = max([REMEMBER, *(channel.repeat_after for channel in self._channels.values())])
        old = [key for key, told in self.told.items() if not told.open and now - told.at > longest]
        for key in old or sorted(self.told, key=lambda key: self.told[key].at)[: MOST_TOLD // 10]:
            self._set_open(key, self.told.pop(key), False)
            self._changes.told[key] = None

    # --- sending ----------------------------------------------------------------------------------------------------

    def due(self, channel: str, now: int, unstored: bool = False) -> Alert | None:
        """The alert to send next, if it is time for one.

        :param unstored: also one that a restart would not find.
        """
        if channel in self.stopped or now < self._paused.get(channel, (0, 0))[1]:
            return None
        best: Alert | None = None
        before: set[tuple[str, str]] = set()
        for alert in self._of.get(channel, {}).values():
            thing = (alert.kind, alert.subject)
            # That it is over is not told before that it began.
            if (
                alert.next_try <= now
                and (alert.stored or unstored)
                and thing not in before
                and not (alert.resolved and (alert.kind, "") in before)
                and (best is None or alert.next_try < best.next_try)
            ):
                best = alert
            before.add(thing)
        return best

    def sent(self, alert: Alert, now: int) -> None:
        """The channel has it, and has said so."""
        self._paused.pop(alert.channel, None)
        for other in self._of.get(alert.channel, {}).values():
            # It works again: what failed before need not wait any longer.
            if other.tries:
                other.next_try = min(other.next_try, now)
        self._end(alert, SENT, now)

    def failed(self, alert: Alert, error: str, now: int, chance: float, retry_after: int = 0) -> None:
        """An attempt failed.

        :param chance: a random number from 0 to 1: not all that wait come back at the same moment.
        :param retry_after: the channel asked for so long a pause.
        """
        alert.tries += 1
        alert.error = error
        failures = self._paused.get(alert.channel, (0, 0))[0] + 1
        pause = min(max(_pause(failures, LONGEST_SILENCE, chance), retry_after), LONGEST_PAUSE)
        self._paused[alert.channel] = failures, now + pause
        if now - alert.at >= GIVE_UP:
            self._end(alert, GIVEN_UP, now)
            return
        alert.next_try = now + max(pause, _pause(alert.tries, LONGEST_PAUSE, chance))
        self._changed(alert)

    def gone(self, alert: Alert, error: str, now: int) -> None:
        """The channel wants nothing any more; what waits for it waits until the admin says :meth:`retry`."""
        alert.tries += 1
        alert.error = error
        self.stopped[alert.channel] = self._changes.stopped[alert.channel] = now, error
        self._changed(alert)

    def retry(self, what: str, now: int) -> None:
        """Send now what waits: all, or an alert, or all of a channel."""
        for alert in self.waiting.values():
            if what in ("", alert.uid, alert.channel):
                alert.next_try = min(alert.next_try, now)
                self._paused.pop(alert.channel, None)
                self._start_again(alert.channel)
                self._changed(alert)
        for channel in [what] if what in self.stopped else list(self.stopped) if not what else []:
            self._start_again(channel)

    def _start_again(self, channel: str) -> None:
        if self.stopped.pop(channel, None) is not None:
            self._changes.stopped[channel] = None

    def expire(self, now: int) -> list[Alert]:
        """Give up what nobody tries to send any more: its channel was stopped or is not configured."""
        old = [alert for alert in self.waiting.values() if now - alert.at >= GIVE_UP]
        old = [alert for alert in old if alert.channel in self.stopped or alert.channel not in self._channels]
        for alert in old:
            self._end(alert, GIVEN_UP, now)
        return old

    def _end(self, alert: Alert, state: str, now: int) -> None:
        alert.state, alert.done_at = state, now
        if state == SENT:
            alert.error = ""
        self.waiting.pop(alert.uid, None)
        self._of.get(alert.channel, {}).pop(alert.uid, None)
        self._changed(alert)

    # --- writing down -----------------------------------------------------------------------------------------------

    def _changed(self, alert: Alert) -> None:
        self._changes.alerts[alert.uid] = alert

    def changes(self) -> Changes:
        """What changed since it was last taken."""
        changes, self._changes = self._changes, Changes({}, {}, {})
        return changes

    def written(self, changes: Changes) -> None:
        """These are on disk."""
        for alert in changes.alerts.values():
            alert.stored = True

    def put_back(self, changes: Changes) -> None:
        """These could not be written; what changed since is newer."""
        newer = self._changes
        self._changes = Changes(
            {**changes.alerts, **newer.alerts},
            {**changes.told, **newer.told},
            {**changes.stopped, **newer.stopped},
        )

    def write_anew(self) -> None:
        """Have all that is known written: the database is another one."""
        self._changes.alerts.update(self.waiting)
        self._changes.told.update(self.told)
        self._changes.stopped.update(self.stopped)


def _pause(failures: int, longest: int, chance: float) -> int:
    """Doubled with each failure, less up to half of it by chance."""
    return int(min(FIRST_PAUSE << min(failures - 1, 20), longest) * (1 - chance / 2))


__all__ = ["WAITS", "Book", "Changes", "Channel"]
