"""The running whole: builds everything from the configuration, reloads it, ends it in order. The only place that does."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import time
from collections.abc import Iterator

from policyd import __version__, alertwatch, checks, detectors
from policyd.alertdesk import AlertDesk
from policyd.alerts.channels import channels
from policyd.alertwatch import State
from policyd.blocklists import SUBJECT
from policyd.checks import Context
from policyd.config import CheckSection, Config, doubts, load
from policyd.decisionlog import DecisionLog, open_sink
from policyd.desk import Desk
from policyd.detectors import Surroundings
from policyd.engine import Engine, Rule
from policyd.errors import ConfigError, PolicydError, StoreError, UserError
from policyd.geo import countries
from policyd.listen import Listening
from policyd.names import Names
from policyd.notify import Manager
from policyd.sentence import DISTINCT
from policyd.settings import Disagreement
from policyd.settle import settle
from policyd.stagewatch import StageWatch
from policyd.store.clock import wall
from policyd.store.locks import DaemonLock
from policyd.store.steering_reader import SteeringReader
from policyd.store.upkeep import Keep
from policyd.store.writer import Writer
from policyd.watch import Detect, Watch

log = logging.getLogger("policyd")

#: Between two looks at the time limits of sessions, s.
LOOK = 5.0
#: Time for what is being decided when policyd ends, s.
ENDING = 10.0
#: Time, within that, for who has just connected and asked nothing yet, s: asking again is all that Postfix tries, once.
NEWCOMERS = 1.0
#: Turns of the loop from a connection that the kernel has accepted to the request that it has read from it, and some more.
TURNS = 10


def build_engine(config: Config, names: Names | None = None) -> Engine:
    """The engine that the configuration describes.

    :param names: to ask the DNS with; without, nothing is known to it.
    :raises ConfigError: a check does not take its options.
    """
    rules, problems = [], []
    names = names or Names()
    for section in config.checks:
        try:
            rules.append(_rule(section, config, names))
        except Disagreement as error:
            place = section.places.get(error.key, section.place)
            problems.append(f"{place}: check {section.name!r}: {error}")
        except (ValueError, LookupError) as error:
            problems.append(f"{section.place}: check {section.name!r}: {error}")
        except Exception as error:  # noqa: BLE001, whatever a check of the admin's own raises
            problems.append(f"{section.place}: check {section.name!r}: {type(error).__name__}: {error}")
    if problems:
        raise ConfigError(problems)
    watch = build_watch(config)
    return Engine(rules, config.policy_version, time.perf_counter_ns, _check_failed, watch)


def build_watch(config: Config) -> Watch:
    """The detectors that the configuration describes, and what becomes of accounts."""
    blocklist_checks = frozenset(
        check.name
        for check in config.checks
        if check.use == "dnsbl" and getattr(check.options, "lookup", "") == "client"
    )
    country_of = countries(config.country_database)
    detects = []
    for section, _ in config.detects:
        around = Surroundings(config.site, section.except_networks, country_of, blocklist_checks)
        sentence = section.when
        detector = detectors.load(sentence.noun)(around) if sentence.kind == DISTINCT else None
        detects.append(Detect(section.name, sentence, section.then == "suspend", section.mode, detector))
    return Watch(detects, config.suspending, config.tiers)


def _rule(section: CheckSection, config: Config, names: Names) -> Rule:
    _, check = checks.load(section.use)
    context = Context(
        section.name,
        section.direction,
        config.site,
        config.tiers,
        names.resolver,
        names.blocklists,
        names.spf,
        config.suspending,
    )
    return Rule(
        section.name,
        section.use,
        section.direction,
        section.mode,
        section.on_error,
        check(section.options, context),
        section.when,
    )


_failures: dict[str, int] = {}


def _check_failed(name: str, error: Exception) -> None:
    count = _failures[name] = _failures.get(name, 0) + 1
    if count & (count - 1) == 0:
        log.error("check %s failed (%d times so far): %s: %s", name, count, type(error).__name__, error)


class Service:
    """One policyd."""

    def __init__(
        self, config: Config, loop: asyncio.AbstractEventLoop, manager: Manager | None = None
    ) -> None:
        """Open the database and build everything; nothing listens yet.

        :param manager: who is told how policyd does.
        :raises PolicydError: what is wrong, and what to do.
        """
        self.config = config
        self._loop = loop
        self._manager = manager or Manager()
        self.names = Names()
        self.names.prepare(config)
        engine = build_engine(config, self.names)
        decision_log = _open_log(config)
        self._lock = DaemonLock(config.store.path)
        self._writer = Writer(
            config.store.path,
            settle,
            durability=config.store.durability,
            backlog=config.store.memory_backlog,
            keep=_keep(config),
        )
        self._writer.open()
        self._reader = SteeringReader(config.store.path, self._writer.steering())
        clock = self._writer.clock
        self.desk = Desk(
            loop, self._writer, engine, config.site, decision_log, clock.now, self._reader.steering
        )
        self.listening = Listening(self.desk)
        self._started = clock.now()
        self._asked = alertwatch.Asked(self._started)
        self.alerts = AlertDesk(loop, self._writer, clock.now, wall, self._states)
        self._writer.deliver = self.desk.deliver
        self._writer.replaced = self._replaced
        self._writer.on_loop, self._writer.soon = loop.call_soon_threadsafe, loop.call_soon
        #: Since when the policy holds; wall clock, ms.
        self._since = wall()
        self._apply(config)
        self._timer: asyncio.TimerHandle | None = None
        self._life: asyncio.TimerHandle | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._reload_wanted = False
        self._mending: asyncio.Task[None] | None = None
        #: Whether it ever listened: what never began is not told to have ended.
        self._listened = False
        #: Decision logs that a reload replaced, while they are written.
        self._old_logs: list[DecisionLog] = []

    async def start(self) -> None:
        """Start the writer and listen.

        :raises UserError: a listener cannot be opened.
        """
        self._writer.start()
        for listener in self.config.server.listen:
            await self.listening.open(listener)
        self._listened = True
        self._loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        self._loop.add_signal_handler(signal.SIGUSR1, self._reopen_logs)
        self._look()
        self._sign_of_life()
        self.alerts.start()
        _warn(self.config)
        for address in self.listening.unused():
            log.warning(
                "systemd listens on %s for policyd, and [server] listen does not name it: who asks there gets no answer; "
                "add it, or take it out of policyd.socket",
                address,
            )
        log.info(
            "policyd %s ready on %s; policy %s, %s, pid %d",
            __version__,
            ", ".join(listener.address for listener in self.config.server.listen),
            self.config.policy_version,
            type(self._loop).__module__.split(".")[0],
            os.getpid(),
        )
        self._tell_ready()

    def _tell_ready(self, also: str = "") -> None:
        addresses = ", ".join(self.listening.ports)
        self._manager.ready(f"{also}policy {self.config.policy_version} on {addresses}")

    def _sign_of_life(self) -> None:
        """Feed the watchdog as long as the loop turns and the writer is there; without him nothing is counted."""
        if self._manager.watchdog and self._writer.alive():
            self._manager.alive()
            self._life = self._loop.call_later(min(LOOK, self._manager.watchdog / 3), self._sign_of_life)

    async def stop(self) -> None:
        """Accept nothing more, answer what was asked, close the store."""
        self._manager.stopping()
        for timer in (self._timer, self._life):
            if timer is not None:
                timer.cancel()
        for task in (self._reloading, self._mending):
            if task is not None:
                task.cancel()
        for address in list(self.listening.ports):
            await self.listening.close(address)
        until = time.monotonic() + ENDING
        await self._last_requests(time.monotonic() + NEWCOMERS)
        for session in list(self.listening.sessions):
            session.finish()
        # Looked at only once in a life: not worth an event that every request would have to feed.
        while self._in_work() and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if self._in_work():
            log.error("ending with %d requests not answered", len(self.desk.waiting))
        await self.names.close()
        await self.alerts.stop()
        await self._loop.run_in_executor(None, self._writer.stop)
        # What the writer handed back last is delivered by calls that are queued on the loop.
        await asyncio.sleep(0)
        self._reader.close()
        for decision_log in (*self._old_logs, self.desk.decision_log):
            decision_log.close()
        self._lock.release()
        if self._listened:
            log.info("policyd ended")

    async def _last_requests(self, until: float) -> None:
        """Let in who was accepted before the listeners closed, and read what has come in by now."""
        for _ in range(TURNS):
            await asyncio.sleep(0)
        while time.monotonic() < until and any(session.new for session in self.listening.sessions):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def _in_work(self) -> bool:
        # Not idle: what the deadline answered may still have to be corrected in the ledger.
        return (
            bool(self.desk.waiting)
            or not self._writer.idle()
            or any(session.busy for session in self.listening.sessions)
        )

    def _apply(self, config: Config) -> None:
        self.desk.deadline = config.server.deadline / 1000
        self.desk.fail = config.server.fail
        self.listening.hold(config.server.max_connections)
        self._writer.configure(_keep(config), config.store.memory_backlog)
        self.names.take_over(config, [rule.check for rule in self.desk.engine.rules])
        self.alerts.configure(channels(config.alerts, config.channels, self.desk.own))

    def _replaced(self) -> None:
        self._reader.reopen()
        self.alerts.replaced()

    def _states(self) -> Iterator[State]:
        """How policyd's parts are, for the alerts."""
        now = self._writer.clock.now()
        sick = self._writer.sick or self.alerts.hangs
        if not self._writer.alive():
            sick = "the writer has ended; restart policyd"
        facts = {"why": sick, "path": self.config.store.path} if sick else {}
        yield State("store-sick", "database", bool(sick), facts)
        yield alertwatch.clock_state(self._writer.clock.stepped, self._started, now)
        yield self._asked.state(sum(self.desk.stages.seen.values()), now, self.config.alerts.not_asked)
        yield from alertwatch.dns_states(self.names.report(), SUBJECT)
        for subject, missing, why in self.desk.stages.states():
            yield State("stage-missing", subject, missing, {"why": why} if missing else {})

    def _look(self) -> None:
        now = time.monotonic()
        for session in list(self.listening.sessions):
            try:
                session.check_time(now)
            except Exception:  # one session's trouble must not end the look at all others
                log.exception("a session could not be looked at")
        if not self._writer.alive():
            log.critical("the writer has ended; nothing is counted any more, restart policyd")
        self.names.watch()
        self._tell()
        for line in self.desk.stages.missing():
            log.warning("%s", line)
        if self._mending is None or self._mending.done():
            self._mending = self._loop.create_task(self._mend())
        self._timer = self._loop.call_later(LOOK, self._look)

    def _tell(self) -> None:
        """Have ``policyctl status`` see how things are."""
        self._writer.tell([("policy", self.config.policy_version, self._since, {}), *self.names.report()])

    async def _mend(self) -> None:
        try:
            await self.listening.mend()
        except UserError as error:
            log.error("%s", error)

    def _reopen_logs(self) -> None:
        self.desk.decision_log.reopen()

    def _reload_soon(self) -> None:
        # One that is asked for during another comes after it: the file may have been read already.
        self._reload_wanted = True
        if self._reloading is None or self._reloading.done():
            self._reloading = self._loop.create_task(self._reload_as_wanted())

    async def _reload_as_wanted(self) -> None:
        while self._reload_wanted:
            self._reload_wanted = False
            await self.reload()

    async def reload(self) -> None:
        """Read the configuration again and take it over; a bad one is refused, and the old one kept."""
        self._manager.reloading()
        refused = "last reload refused, see its messages; "
        try:
            await self._reload()
            refused = ""
        except PolicydError as error:
            for line in str(error).splitlines():
                log.error("reload refused: %s", line)
            log.error("reload refused: policy %s stays in force", self.config.policy_version)
        except Exception:  # a defect must be seen, and must not end what runs
            log.exception("reload failed; policy %s stays in force", self.config.policy_version)
        finally:
            self._tell_ready(refused)

    async def _reload(self) -> None:
        self.desk.decision_log.reopen()
        # Not on the loop: a file of some megabytes takes seconds, and requests do not wait for it.
        config = await self._loop.run_in_executor(None, load, self.config.path, checks.options_of)
        self.names.prepare(config)
        engine = build_engine(config, self.names)
        old_log = self.desk.decision_log
        decision_log = old_log if config.log == self.config.log else _open_log(config)
        try:
            await self._listen_anew(config)
        except PolicydError:
            if decision_log is not old_log:
                decision_log.close(0)
            raise
        if (
            config.store.path != self.config.store.path
            or config.store.durability != self.config.store.durability
        ):
            log.warning("[store] url and durability take effect at the next start, not at a reload")
        if decision_log is not old_log:
            self.desk.decision_log = decision_log
            # What its sinks have not taken yet is written by its own thread, at the end it is waited for.
            self._old_logs = [each for each in (*self._old_logs, old_log) if not each.close(0)]
        self.desk.engine, self.desk.site = engine, config.site
        self.desk.stages = StageWatch(engine.rules, engine.watch)
        old, self.config = self.config, config
        self._since = wall()
        self._apply(config)
        self._tell()
        _warn(config)
        log.info("reloaded: policy %s, before %s", config.policy_version, old.policy_version)

    async def _listen_anew(self, config: Config) -> None:
        """Open what is new, close what is gone; sessions that are open go on."""
        opened = []
        try:
            for listener in config.server.listen:
                known = self.listening.ports.get(listener.address)
                if known is None:
                    await self.listening.open(listener)
                    opened.append(listener.address)
                elif known[0] != listener:
                    log.warning(
                        "changed settings of listener %s take effect at the next start", listener.address
                    )
        except UserError:
            for address in opened:
                await self.listening.close(address)
            raise
        wanted = {listener.address for listener in config.server.listen}
        for address in list(self.listening.ports):
            if address not in wanted:
                await self.listening.close(address)


def _open_log(config: Config) -> DecisionLog:
    sinks = []
    for name in config.log.decisions:
        try:
            sinks.append(open_sink(name))
        except OSError as error:
            raise UserError(
                f"decision log {name}: {error.strerror}; make its directory, owned by policyd's user, or change [log] decisions"
            ) from None
    return DecisionLog(sinks, config.log.format)


def _warn(config: Config) -> None:
    for line in doubts(config):
        log.warning("%s", line)


def _keep(config: Config) -> Keep:
    keep = config.keep
    return Keep(keep.decisions, keep.max_size, keep.min_free, keep.memory)


def raise_file_limit() -> None:
    """Take as many descriptors as this process may have: each smtpd process holds a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


__all__ = ["ConfigError", "Service", "StoreError", "build_engine", "raise_file_limit"]
