"""The log that Postfix would have written of mails of the simulation, as lines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from tests.simulation.month import Mail


def lines(mails: Iterable[Mail]) -> Iterator[str]:
    """Each mail: taken from a login, put into the queue, delivered to each recipient, removed."""
    for number, mail in enumerate(mails):
        stamp = (
            time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(mail.at // 1000))
            + f".{mail.at % 1000:03}000+00:00"
        )
        queue_id = f"{number:X}A9"
        rest = (
            f"submission/smtpd[99]: {queue_id}: client=unknown[{mail.client}], sasl_method=PLAIN, sasl_username={mail.user}",
            f"cleanup[98]: {queue_id}: message-id=<{number}@simulated.example>",
            f"qmgr[97]: {queue_id}: from=<{mail.user}>, size={mail.size}, nrcpt={len(mail.recipients)} (queue active)",
            *(
                f"smtp[96]: {queue_id}: to=<{recipient}>, relay=mx.example[192.0.2.1]:25, delay=1, delays=0/0/1/0, dsn=2.0.0, "
                "status=sent (250 ok)"
                for recipient in mail.recipients
            ),
            f"qmgr[97]: {queue_id}: removed",
        )
        yield from (f"{stamp} mx postfix/{each}" for each in rest)
