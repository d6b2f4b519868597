"""Whatever comes on the wire, the same process goes on, answers what is a request, and writes one printable line each."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from policyd.wire import MAX_ATTRIBUTES, MAX_LINE, MAX_REQUEST
from tests.system.asking import END, RCPT, Asker, attributes, encoded, in_parallel, policy
from tests.system.daemon import Policyd
from tests.system.every_third import echo

#: Mutated ones; with those of Hypothesis at least 200,000.
MUTATED = 200_000
ORDINARY = 40_000
GENERATED = 250  # examples of Hypothesis, each several requests
STREAMS = 8
CHECKS = "[[check]]\nuse = 'tests.system.every_third'\nname = 'echo'\nevery = 0\necho = 1\n"
LINE = re.compile(r"[\x20-\x7e]+")
NASTY = [
    b"\0",
    b"\xff\xfe",
    b"\xc3",
    b"\xed\xa0\x80",
    b"%n%s%x",
    b"'; DROP TABLE ban; --",
    b'"',
    b"\\",
    b"{ref} {0} {user}",
    b"\r",
    b"\x1b[31m",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\xe2\x80\xae",
    b"=",
    b"==",
    b"\t",
    b"<>",
    b"@",
    b"a" * 9000,
    b"9" * 400,
    b"-1",
    "\u0661".encode(),
    b"action=OK",
]


def expected(stream: bytes) -> tuple[list[bytes], bool]:
    """The requests in ``stream`` that are to be answered, and whether what follows breaks the protocol.

    Written from the grammar (SMTPD_POLICY_README) and the limits alone, to judge policyd's parser by.
    """
    good: list[bytes] = []
    while stream:
        if stream.startswith(b"\n"):
            return good, True
        block, end, stream = stream.partition(b"\n\n")
        if not end:
            lines = block.split(b"\n")
            return good, len(block) > MAX_REQUEST + 1 or len(lines[-1]) > MAX_LINE
        lines = block.split(b"\n")
        names = [line.partition(b"=")[0] for line in lines]
        first = {
            name: line.partition(b"=")[2] for name, line in reversed(list(zip(names, lines, strict=True)))
        }
        if (
            b"\0" in block
            or len(block) > MAX_REQUEST
            or len(lines) > MAX_ATTRIBUTES
            or any(len(line) > MAX_LINE or b"=" not in line for line in lines)
            or b"" in names
            or first.get(b"request") != b"smtpd_access_policy"
        ):
            return good, True
        good.append(first.get(b"instance", b""))
    return good, False


def saying(instance: bytes) -> str:
    """The answer to a request of this instance, if nothing else is against it."""
    return f"HOLD {echo(instance.decode('utf-8', 'backslashreplace')[:512])}"


class Peer:
    """Sends streams over connections of its own, and holds the answers against what is expected."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.sent = 0
        self.answered = 0
        self.broken = 0
        self._asker: Asker | None = None

    def talk(self, stream: bytes, requests: int, *, pieces: int = 0) -> None:
        """Send all of it at once, or in pieces of so many octets."""
        good, breaks = expected(stream)
        if self._asker is None:
            self._asker = Asker(self.address)
        asker = self._asker
        try:
            for at in range(0, len(stream), pieces or len(stream)):
                asker.send(stream[at : at + (pieces or len(stream))])
        except (BrokenPipeError, ConnectionResetError):
            assert breaks, stream[:500]
        for number, instance in enumerate(good):
            try:
                answer = asker.answer()
            except EOFError:
                raise AssertionError(f"no answer to request {number} of {stream[:2000]!r}") from None
            # A mutation may have made the message too large for the limit, or banned nobody's neighbour.
            assert answer == saying(instance) or answer.startswith("550 5.7.1 Message too large"), (
                instance,
                answer,
            )
        self.sent += requests
        self.answered += len(good)
        if breaks:
            assert asker.at_end()
            self.broken += 1
        if breaks or not stream.endswith(b"\n\n"):
            asker.sock.close()
            self._asker = None

    def close(self) -> None:
        """Close what is open."""
        if self._asker is not None:
            self._asker.sock.close()
            self._asker = None


def originals(numbers: Iterator[int]) -> Iterator[bytes]:
    """Requests as Postfix, postfwd and iRedAPD's documents show them, each with an instance of its own."""
    chance = random.Random(1)
    while True:
        instance = f"{next(numbers):x}.h"
        kind = chance.randrange(4)
        if kind == 0:
            yield encoded(attributes(END, f"u{chance.randrange(50)}@example.org", instance=instance))
        elif kind == 1:
            yield encoded(attributes(RCPT, "", instance=instance, client_address="2001:db8::7"))
        elif kind == 2:
            yield encoded({"request": "smtpd_access_policy", "instance": instance})
        else:
            yield encoded(
                attributes(
                    END,
                    "",
                    instance=instance,
                    sender="=?j\u00fcrgen=@example.net",
                    policy_context="mx",
                    ccert_subject="CN=host",
                    ccert_fingerprint="C2:9D",
                    tls_sni="mx.example.org",
                    etrn_domain="",
                    stress="yes",
                )
            )


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One change to the octets; most leave a request a request."""
    kind = chance.randrange(14)
    at = chance.randrange(len(data))
    if kind == 0:  # any octet, anywhere
        return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    if kind == 1:  # something lost
        return data[:at] + data[at + chance.randrange(1, 30) :]
    lines = data[:-2].split(b"\n")
    which = chance.randrange(len(lines))
    if kind == 2:  # a line twice, with another value
        lines.append(lines[which].partition(b"=")[0] + b"=" + chance.choice(NASTY))
    elif kind == 3:
        chance.shuffle(lines)
    elif kind == 4 and chance.random() < 0.02:  # attributes without end
        lines += [b"x%d=" % number for number in range(chance.choice((200, 255, 300, 10_000)))]
    elif which and kind < 13:  # a value that bites, more often than not in a text that is kept
        name, _, value = lines[which].partition(b"=")
        cut = chance.randrange(len(value) + 1)
        lines[which] = name + b"=" + value[:cut] + chance.choice(NASTY) + value[cut:]
    return b"\n".join(lines) + b"\n\n"


def numbered(first: int, step: int) -> Iterator[int]:
    """Numbers of one peer's own."""
    while True:
        yield first
        first += step


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, int, int]:
    """A stream of requests made of anything, their number, and the size of the pieces it is cut into."""
    text = st.binary(max_size=60).map(
        lambda octets: octets.replace(b"\n", b"").replace(b"\0", b"")
    ) | st.sampled_from(NASTY)
    real = st.sampled_from([name.encode() for name in attributes()] + [b"policy_context", b"stress"])
    name = real | text.filter(lambda octets: b"=" not in octets and octets != b"")
    requests = []
    for number in range(draw(st.integers(1, 8))):
        pairs = draw(st.lists(st.tuples(name, text), max_size=30))
        # An instance that is asked about twice may be refused the second time; each has its own here.
        own = [
            (b"request", b"smtpd_access_policy"),
            (b"instance", b"%d.%s" % (number, draw(st.binary(min_size=9, max_size=9)).hex().encode())),
        ]
        lines = [key + b"=" + value for key, value in own + pairs]
        requests.append(b"\n".join(draw(st.permutations(lines[1:])) + lines[:1]) + b"\n\n")
    stream = b"".join(requests)
    if draw(st.booleans()):
        stream += draw(st.binary(max_size=40))
    return stream, len(requests), draw(st.sampled_from([0, 0, 1, 7, 1000]))


def test_hostile_input(tmp_path: Path) -> None:
    """Over 200,000 requests, most of them not as Postfix would send them: the same process, every well-formed one answered
    once and in order, a row and a printable log line each, and hardly more memory than before."""
    address = f"unix:{tmp_path}/sock"
    limits = ["1000000000 messages per 1d", "100GB per 1d"]
    with Policyd(tmp_path, policy(address, limits=limits, checks=CHECKS)) as policyd:
        pid = policyd.pid
        peers: list[Peer] = []

        def run(number: int, share: int, wild: float) -> Callable[[], None]:
            peer = Peer(address)
            peers.append(peer)

            def task() -> None:
                chance = random.Random(number)
                source = originals(numbered(number, STREAMS))
                while peer.sent < share:
                    requests = [next(source) for _ in range(chance.choice((1, 5, 20, 60)))]
                    stream = b"".join(
                        mutate(each, chance) if chance.random() < wild else each for each in requests
                    )
                    if chance.random() < wild / 20:
                        stream = stream[: chance.randrange(1, len(stream))]  # no end
                    small = len(stream) < 2000 and chance.random() < 0.2
                    peer.talk(stream, len(requests), pieces=1 if small else 0)
                peer.close()

            return task

        # What ordinary mail fills (the pages that SQLite keeps, the newest instances) is full before it is measured.
        in_parallel([run(number, ORDINARY // STREAMS, 0.0) for number in range(STREAMS)])
        memory = policyd.resident()
        in_parallel([run(100 + number, MUTATED // STREAMS, 0.6) for number in range(STREAMS)])

        generated = Peer(address)
        peers.append(generated)

        @seed(2)
        @settings(
            max_examples=GENERATED,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(streams())
        def from_hypothesis(made: tuple[bytes, int, int]) -> None:
            stream, requests, pieces = made
            generated.talk(stream, requests, pieces=pieces if len(stream) < 5000 or pieces > 1 else 0)

        begun = time.monotonic()
        from_hypothesis()
        generated.close()
        # 64 MB without an end are refused early.
        with Asker(address) as endless:
            try:
                for _ in range(64):
                    endless.send(b"a" * 1024 * 1024)
            except (BrokenPipeError, ConnectionResetError):
                pass
            assert endless.at_end()
        print(
            f"{sum(peer.sent for peer in peers)} requests, {sum(peer.answered for peer in peers)} answered, "
            f"{sum(peer.broken for peer in peers)} connections broken; memory {memory >> 20} MB before, "
            f"{(policyd.resident() - memory) / 2**20:.1f} MB more after; Hypothesis {time.monotonic() - begun:.1f} s"
        )
        assert sum(peer.sent for peer in peers) >= ORDINARY + MUTATED
        assert policyd.runs
        assert policyd.pid == pid
        assert policyd.resident() - memory < 10 * 2**20
        with Asker(address) as asker:
            assert asker.ask(instance="last") == saying(b"last")
        answered = sum(peer.answered for peer in peers) + 1
        assert policyd.query("SELECT count(*), min(id), max(id) FROM decision") == [(answered, 1, answered)]
        policyd.stop()
        told = policyd.told()
        assert "Traceback" not in told
        assert "decision failed" not in told
        assert all(LINE.fullmatch(line) for line in told.splitlines())
        ids: Counter[str] = Counter()
        with open(policyd.decisions, encoding="ascii", newline="\n") as lines:
            for line in lines:
                assert LINE.fullmatch(line.rstrip("\n")), line
                ids[line.split(" ", 2)[1]] += 1
        assert len(ids) == answered
        assert set(ids.values()) == {1}
        policyd.start()
