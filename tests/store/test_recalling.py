"""Remembered facts through the real writer, against a dictionary: piles, trouble, the admin's changes, restarts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policyd.answer import make_answer
from policyd.decision import Decision, Operation
from policyd.opinion import Memory, MemoryKey, Opinion, Recalled
from policyd.request import Request
from policyd.steering import Entry
from policyd.store import admin, connect, memory
from policyd.store import sturdy as sturdy_module
from policyd.store.connect import open_for_admin
from policyd.units import DAY
from tests.fakes import PATIENCE, Disk, Store, engine, from_outside, says
from tests.store.faulty import Faulty

KIND = "tally"
REFUSES = Opinion(make_answer("550", "5.7.1 Listed; ref {ref}"), "listed")


class Tally(NamedTuple):
    """Remembers how often it was asked about each key, and says so."""

    keys: tuple[MemoryKey, ...]

    def judge(self, request: Request, now: int, known: Mapping[MemoryKey, Memory]) -> Recalled:
        facts = {}
        for key in self.keys:
            before = known.get(key)
            hits = 1 if before is None else before.hits + 1
            facts[key] = Memory(now, now, hits, now + DAY)
        return Recalled(Opinion(reason=" ".join(str(fact.hits) for fact in facts.values())), facts)


def keys_of(request: Request) -> list[str]:
    return request.recipient.partition("@")[0].split(".")


def tally(request: Request) -> Opinion:
    return Opinion(recall=Tally(tuple(MemoryKey(KIND, name) for name in keys_of(request))))


CHAIN = engine(
    says(tally, "tally"), says(lambda request: REFUSES if request.sender.startswith("bad") else None)
)

mails = st.tuples(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True), st.integers(0, 5))
batches = st.lists(st.lists(mails, min_size=1, max_size=6), min_size=1, max_size=4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("decide"), batches),
        st.tuples(st.just("fail"), batches, st.integers(1, 12), st.booleans()),
        st.tuples(st.just("change"), batches),
        st.tuples(st.just("forget"), st.lists(st.sampled_from("abcdef"), max_size=3)),
        st.tuples(st.just("restart")),
    ),
    min_size=1,
    max_size=8,
)


class Model:
    """What the facts must be, and the store that has them."""

    def __init__(self, place: Path, faulty: type[Faulty]) -> None:
        self.place, self.faulty = place, faulty
        self.hits: dict[str, int] = {}
        self.changes = 0

    def ask(
        self, store: Store, given: list[list[tuple[list[str], int]]], how: str, at: int, lasting: bool
    ) -> None:
        """Submit batch on batch while a transaction waits, so that they lie on each other; then let it go on, or fail."""
        self.faulty.waits.clear()
        self.faulty.gate.clear()
        operations: list[Operation] = []
        for batch in given:
            operations += [store.operation(self.mail(*mail)) for mail in batch]
            for operation in operations[-len(batch) :]:
                store.writer.submit(operation)
            self.faulty.waits.wait(0 if self.faulty.waits.is_set() else PATIENCE)
        if how == "change":
            self.ban()
        if how == "fail":
            self.faulty.arm(at, lasting)
        self.faulty.gate.set()
        decisions = dict(store.handed.get(timeout=PATIENCE) for _ in operations)
        self.faulty.arm(0)
        self.told([(operation.request, decisions[operation]) for operation in operations])

    def mail(self, names: list[str], kind: int) -> Request:
        sender = f"{'bad' if kind == 0 else 'good'}@example.net"
        return from_outside(recipient=f"{'.'.join(names)}@example.org", sender=sender, instance="")

    def ban(self) -> None:
        """The admin changes something that has nothing to do with it."""
        self.changes += 1
        with open_for_admin(str(self.place)) as connection, admin.change(connection, "root", "x") as change:
            change.put("ban", Entry("user", f"u{self.changes}@example.org", "spam", "root", 0, 0))

    def told(self, decided: list[tuple[Request, Decision | None]]) -> None:
        """Each number was told once, whatever the order: none is lost, and none was taken for another one."""
        numbers: dict[str, list[int]] = {}
        for request, decision in decided:
            assert decision is not None
            if decision.settled.verdict == "refuse":
                continue
            (said,) = [
                each[4] for each in json.loads(decision.settled.detail)["checks"] if each[0] == "tally"
            ]
            for name, number in zip(keys_of(request), said.split(), strict=True):
                numbers.setdefault(name, []).append(int(number))
        for name, found in numbers.items():
            before = self.hits.get(name, 0)
            assert sorted(found) == list(range(before + 1, before + len(found) + 1)), name
            self.hits[name] = before + len(found)

    def heal(self, store: Store) -> None:
        for _ in range(2_000):
            if not store.writer.sick:
                return
            self.told(self.one(store))
        raise AssertionError(store.writer.sick)

    def one(self, store: Store) -> list[tuple[Request, Decision | None]]:
        request = self.mail(["a"], 1)
        return [(request, store.decide(request)[0])]

    def on_disk(self) -> dict[str, int]:
        return dict(Disk(self.place).query("SELECT key, hits FROM memory WHERE kind = ?", KIND))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(steps)
def test_every_fact_is_what_was_decided(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    faulty: type[Faulty],
    steps: list[tuple[object, ...]],
) -> None:
    """Batches on a pile while the one before is written; it fails, or the admin changed something: all is decided again."""
    monkeypatch.setattr(sturdy_module, "RETRY", 0.001)
    monkeypatch.setattr(connect, "DAEMON_BUSY", 1)
    model = Model(tmp_path_factory.mktemp("recall") / "policyd.db", faulty)
    store = Store(model.place, CHAIN)
    store.__enter__()
    try:
        for step in steps:
            match step:
                case ("decide" | "change" as how, given):
                    model.ask(store, given, how, 0, False)
                case ("fail", given, at, lasting):
                    # What cannot be read counts as not remembered; here it is known before.
                    store.decide(model.mail(list("abcdef"), 0))
                    model.ask(store, given, "fail", at, lasting)
                case ("forget", names):
                    with (
                        open_for_admin(str(model.place)) as connection,
                        admin.change(connection, "root", "x"),
                    ):
                        memory.delete(connection, KIND, names)
                    for name in names:
                        model.hits.pop(name, None)
                    # It is heard with the next transaction; a disk that fails before that leaves what was known.
                    store.decide(model.mail(["z"], 0))
                case _:
                    store.stop()
                    store = Store(model.place, CHAIN)
                    store.__enter__()
            model.heal(store)
            assert model.on_disk() == model.hits
    finally:
        faulty.gate.set()
        store.stop()
