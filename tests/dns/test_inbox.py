"""Many answers at once are read in slices, and everything else gets its turn between them."""

from __future__ import annotations

import asyncio

from policyd.dns import inbox as inbox_module
from policyd.dns.inbox import Inbox
from tests.fakes import on_loop


class Reader:
    """Takes a quarter of a slice to read each datagram."""

    def __init__(self) -> None:
        self.now = 0.0
        self.read: list[bytes] = []
        self.inbox = Inbox(lambda: self.now)

    def take(self, data: bytes) -> None:
        self.now += inbox_module.SLICE / 4
        self.read.append(data)
        if data == b"poison":
            raise ValueError("a defect")


@on_loop
async def test_one_turn_of_the_loop_reads_a_slice() -> None:
    """In the order in which they came, none lost, none twice; also those that come meanwhile."""
    reader = Reader()
    sent = [b"%d" % number for number in range(50)]
    for data in sent[:40]:
        reader.inbox.put(reader.take, data)
    assert reader.read == []
    most = 0
    for _ in range(60):
        before = len(reader.read)
        await asyncio.sleep(0)
        most = max(most, len(reader.read) - before)
        if len(sent) > 40 and before == 20:
            for data in sent[40:]:
                reader.inbox.put(reader.take, data)
    assert reader.read == sent
    assert most == 4


@on_loop
async def test_one_that_trips_it_up_leaves_the_others() -> None:
    """A defect costs one answer, which then is as good as lost on the way."""
    reader = Reader()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: None)
    try:
        for data in (b"a", b"poison", b"b", b"c"):
            reader.inbox.put(reader.take, data)
        for _ in range(10):
            await asyncio.sleep(0)
        reader.inbox.put(reader.take, b"d")
        for _ in range(3):
            await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(None)
    assert reader.read == [b"a", b"poison", b"b", b"c", b"d"]
