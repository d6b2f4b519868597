"""Messages for the admin on standard error, written by a thread of their own: a reader who has stopped delays no answer.

Where standard error is systemd's journal each line begins with its priority, ``<N>`` (sd-daemon(3)), which the journal takes
off again.
"""

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
#: Priorities of syslog(3) by the level of a message; between two, the lower level's.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


class Messages(logging.Handler):
    """Takes what is logged and never waits. What finds the queue full is counted, and the count told when there is room."""

    def __init__(self, fd: int = 2) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        self._fd = fd
        self._journal = _is_journal(fd)
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
            self.say(text, record.levelno)

    def say(self, text: str, level: int = logging.ERROR) -> None:
        """One message as it is, in its turn."""
        if self._journal:
            priority = next((number for least, number in _PRIORITIES if level >= least), _DEBUG)
            text = "\n".join(f"<{priority}>{line}" for line in text.split("\n"))
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
                mark = "<4>" if self._journal else ""
                lines.append(f"{mark}WARNING policyd: {lost} messages were left out, for nobody took them")
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


def _is_journal(fd: int) -> bool:
    """Whether systemd says that this descriptor leads to its journal (JOURNAL_STREAM in systemd.exec(5))."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
