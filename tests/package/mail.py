"""Sends mail to the Postfix of its machine at a steady pace, until its standard input ends; tells what became of each.

Run as a program of its own, with Python's own library alone. Arguments: mails a second, and the sender's local part.
"""

from __future__ import annotations

import json
import queue
import smtplib
import sys
import threading
import time

SESSIONS = 10
#: Mails in one SMTP session.
MAILS = 20


def main() -> None:
    pace, name = float(sys.argv[1]), sys.argv[2]
    due: queue.Queue[int | None] = queue.Queue()
    accepted: list[int] = []
    others: list[str] = []

    def work() -> None:
        session, left = None, 0
        while (number := due.get()) is not None:
            if not left:
                session, left = smtplib.SMTP("127.0.0.1", 25, timeout=60), MAILS
            assert session is not None
            left -= 1
            try:
                session.sendmail(
                    f"{name}@example.org", f"{number}@remote.test", "Subject: test\r\n\r\ntest\r\n"
                )
                accepted.append(number)
            except (smtplib.SMTPException, OSError) as error:
                others.append(str(error))
                left = 0
            if not left:
                session.close()

    threads = [threading.Thread(target=work) for _ in range(SESSIONS)]
    for thread in threads:
        thread.start()
    end = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), end.set()), daemon=True).start()
    begun, number, longest = time.monotonic(), 0, 0
    while not end.is_set():
        number += 1
        due.put(number)
        longest = max(longest, due.qsize())
        end.wait(max(0.0, begun + number / pace - time.monotonic()))
    for _ in threads:
        due.put(None)
    for thread in threads:
        thread.join()
    took = time.monotonic() - begun
    print(
        json.dumps(
            {"accepted": len(accepted), "others": others, "waited": longest, "seconds": round(took, 1)}
        )
    )


main()
