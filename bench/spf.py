"""``python -m bench.spf``: what fifty hostile SPF zones at once cost everybody else on the loop.

The evaluator runs over the resolver against the tests' own DNS server. Beside it the loop is asked for a turn again and again:
how late it comes is what any other request would have waited.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from multiprocessing.connection import Connection

from policyd.dns.resolver import Resolver
from policyd.dns.spf import Evaluator
from policyd.senderpolicy import SpfResult, mail_from_claim
from tests.dns.server import DnsServer
from tests.dns.test_spf_hostile import hostile

MAILS = 50
DEADLINE = 4.0


def slow(server: DnsServer, domain: str, client: str) -> None:
    """1 s per answer, includes, MX and PTR to the limits."""
    hostile(server, domain, client)


def heavy(server: DnsServer, domain: str, client: str) -> None:
    """Answers at once, records as large and as laborious as are evaluated at all."""
    networks = " ".join(f"ip4:10.{i // 250}.{i % 250}.0/24" for i in range(180))
    macros = " ".join(f"x{i}=%{{s}}.%{{sr-}}.%{{s}}.%{{l}}.%{{s}}" for i in range(30))
    server.add(
        domain,
        "TXT",
        f"v=spf1 {macros} {' '.join(f'a:h{i}.{domain}' for i in range(5))} include:i.{domain} -all",
    )
    server.add(f"i.{domain}", "TXT", f"v=spf1 {networks} mx -all")
    server.add(f"i.{domain}", "MX", *((j, f"h{j}.{domain}") for j in range(10)))
    for j in range(10):
        server.add(f"h{j}.{domain}", "A", *(f"10.0.{j}.{k}" for k in range(40)))


def honest(server: DnsServer, domain: str, client: str) -> None:
    """An ordinary provider: three includes."""
    server.add(domain, "TXT", f"v=spf1 include:_spf.{domain} ~all")
    server.add(f"_spf.{domain}", "TXT", f"v=spf1 {' '.join(f'include:n{i}.{domain}' for i in range(3))} ~all")
    for i in range(3):
        server.add(
            f"n{i}.{domain}", "TXT", "v=spf1 " + " ".join(f"ip4:10.{i}.{k}.0/24" for k in range(20)) + " ~all"
        )


@contextlib.contextmanager
def served(zone: Callable[[DnsServer, str, str], None]) -> Iterator[str]:
    """The nameserver, in a process of its own: its work must not count as ours."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(zone.__name__, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join()


def _serve(name: str, pipe: Connection) -> None:
    with DnsServer() as server:
        for i in range(MAILS):
            globals()[name](server, f"d{i}.example", f"192.0.2.{i}")
        pipe.send(server.nameserver)
        pipe.recv()


async def lateness(work: Coroutine[None, None, list[SpfResult]]) -> tuple[list[SpfResult], list[float]]:
    """What ``work`` returns, and how late each turn of the loop came meanwhile, s."""
    task = asyncio.ensure_future(work)
    late = []
    while not task.done():
        begun = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append(time.perf_counter() - begun - 0.001)
    return await task, sorted(late)


async def measure(zone: Callable[[DnsServer, str, str], None]) -> str:
    """One line of figures."""
    with served(zone) as nameserver:
        resolver = Resolver([nameserver])
        evaluator = Evaluator(resolver)

        async def mails() -> list[SpfResult]:
            claims = [mail_from_claim(f"192.0.2.{i}", f"{'x.' * 30}x@d{i}.example", "") for i in range(MAILS)]
            due = time.monotonic() + DEADLINE
            found = await asyncio.gather(*(evaluator.evaluate(claim, None, due) for claim in claims))
            return [each.mail_from for each in found]

        begun, worked = time.perf_counter(), time.thread_time()
        results, late = await lateness(mails())
        took, worked = time.perf_counter() - begun, time.thread_time() - worked
        evaluator.close()
        await resolver.close()
    words = ", ".join(sorted({result.result for result in results}))
    most = max(result.questions for result in results)
    return (
        f"{zone.__name__:8} {took:6.2f} s  {words:12} questions a mail at most {most:3}  "
        f"processor {1000 * worked / MAILS:6.2f} ms a mail  "
        f"turn late: median {1000 * late[len(late) // 2]:5.1f} ms, p99 {1000 * late[int(len(late) * 0.99)]:5.1f} ms, "
        f"longest {1000 * late[-1]:5.1f} ms"
    )


def main() -> None:
    """Measure each kind of zone."""
    print(
        f"{MAILS} mails at once, each from a domain of its own; deadline {DEADLINE:g} s; Python {sys.version.split()[0]}"
    )
    for zone in (honest, slow, heavy):
        print(asyncio.run(measure(zone)))


if __name__ == "__main__":
    main()
