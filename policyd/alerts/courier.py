"""A thread for each channel, so that a slow one delays neither the others nor any answer."""

from __future__ import annotations

import copy
import logging
import queue
import threading
from collections.abc import Callable

from policyd.alert import Alert
from policyd.alerts import Deliver, Sent

log = logging.getLogger("policyd.alerts")


class Courier:
    """Takes one alert at a time to its channel."""

    def __init__(self, name: str, deliver: Deliver, done: Callable[[str, Sent], None]) -> None:
        """
        :param done: called on the courier's thread with the alert's uid and what came of it.
        """
        self._deliver, self._done = deliver, done
        self._alerts: queue.SimpleQueue[Alert | None] = queue.SimpleQueue()
        #: The uid of what it has in hand; "" when it waits.
        self.has = ""
        # Nobody waits for it at the end: an attempt without an answer is made again after the start.
        self._thread = threading.Thread(target=self._run, name=f"alert-{name}", daemon=True)
        self._thread.start()

    def send(self, alert: Alert) -> None:
        """Have it sent; only when :attr:`has` is empty."""
        self.has = alert.uid
        # As it is now: what is known of it may change on the loop meanwhile.
        self._alerts.put(copy.deepcopy(alert))

    def end(self) -> None:
        """End after what it has in hand."""
        self._alerts.put(None)

    def _run(self) -> None:
        while (alert := self._alerts.get()) is not None:
            try:
                sent = self._deliver(alert)
            except Exception as error:  # a defect must not be the channel's last word
                log.exception("alert %s could not be sent", alert.uid)
                sent = Sent(f"defect: {type(error).__name__}: {error}")
            self._done(alert.uid, sent)
