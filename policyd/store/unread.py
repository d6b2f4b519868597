"""Which rows the database has to be asked for before operations can be decided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from policyd.decision import Operation
from policyd.opinion import CounterKey, MemoryKey
from policyd.request import END_OF_MESSAGE
from policyd.settle import recipients_of
from policyd.store.accounts import Pair
from policyd.store.decider import Decider
from policyd.trial import counted, limits_of


class Unread(NamedTuple):
    """The keys of the rows."""

    counters: set[CounterKey]
    instances: list[str]
    facts: set[MemoryKey]
    accounts: set[str]
    pairs: set[Pair]


def unread_of(operations: Sequence[Operation], state: Decider) -> Unread:
    """What ``state`` misses for these; what is read then may show that more is missing."""
    keys: set[CounterKey] = set()
    facts: list[MemoryKey] = []
    users: set[str] = set()
    pairs: set[Pair] = set()
    counters, accounts = state.counters, state.accounts
    steering, now = state.steering, state.clock.now()
    instances = state.instances.unread(operation.request for operation in operations)
    for operation in operations:
        request, proposal = operation.request, operation.proposal
        for heard in proposal.heard:
            opinion = heard.opinion
            if opinion is None:
                continue
            quota = opinion.quota
            if quota is None:
                if opinion.recall is not None:
                    facts += opinion.recall.keys
                continue
            limits = quota.limits
            if quota.tiers is not None:
                account = accounts.held(quota.value)
                if account is None:
                    users.add(quota.value)
                    continue
                limits = limits_of(quota, steering, account, now)
            for _, name, _, _ in counted(limits, quota.external is not None):
                if (quota.scope, quota.value, name) not in counters:
                    keys.add(CounterKey(quota.scope, quota.value, name))
        watch = proposal.watch
        if watch is None or not (user := request.login):
            continue
        account = accounts.held(user)
        if account is None:
            users.add(user)
            continue
        sent = account.sent
        if sent is None:
            for unit in watch.units:
                if ("user", user, unit) not in counters:
                    keys.add(CounterKey("user", user, unit))
        if watch.remembers and request.stage == END_OF_MESSAGE and not instances:
            recipients = recipients_of(request, state)
            if sent is None or sent.key != (watch, recipients):
                pairs.update(accounts.unread(user, recipients))
    return Unread(keys, instances, state.memories.unread(facts), users, pairs)
