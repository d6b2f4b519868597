"""Messages for the admin on standard error, written by a thread of their own: a reader who has stopped delays no answer."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque

#: Messages that wait to be written at most; as many again may be in hand.
BACKLOG = 5_000
#: How long the end waits for a reader who takes nothing, s.
ENDING = 3.0


class Messages(logging.Handler):
    """Takes what is logged and never waits. What finds the queue full is counted, and the count told when there is room."""

    def __init__(self, fd: int = 2) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        self._fd = fd
        #: Guards everything below.
        self._changed = threading.Condition()
        self._queue: deque[str] = deque()
        self._lost = 0
        #: Whether the thread has something in hand.
        self._busy = False
        threading.Thread(target=self._run, name="messages", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """See :class:`logging.Handler`."""
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001, whatever somebody handed to the logger: as with every handler
            self.handleError(record)
        else:
            self.say(text)

    def say(self, text: str) -> None:
        """One message as it is, in its turn."""
        with self._changed:
            if len(self._queue) >= BACKLOG:
                self._lost += 1
                return
            self._queue.append(text)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, but not for ever; also done when Python ends."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._queue or self._busy), ENDING)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue)
                self._busy = True
                lines = list(self._queue)
                self._queue.clear()
                lost, self._lost = self._lost, 0
            if lost:
                lines.append(f"WARNING policyd: {lost} messages were left out, for nobody took them")
            self._write(("\n".join(lines) + "\n").encode(errors="backslashreplace"))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                # Somebody else has made the terminal or pipe that we share one that does not wait.
                select.select((), (self._fd,), ())
            except OSError:
                # The reader is gone, and there is nobody to tell.
                return
