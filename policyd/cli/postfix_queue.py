"""Postfix's queue, by Postfix's own commands: what waits, from which login, and what is done with it.

Nothing goes through a shell, and names of queue files go to postsuper(1) on its standard input.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from policyd.errors import UserError

#: Where Postfix's commands are when PATH, as that of a hook, does not say.
_ALSO = ("/usr/sbin", "/usr/local/sbin", "/sbin")
#: Queue files that one postcat(1) reads.
BATCH = 100
#: Short hexadecimal, or long base 52 (postconf(5) enable_long_queue_ids).
QUEUE_ID = re.compile(r"[0-9A-Za-z]{5,30}")
_HEAD = re.compile(rb"\*\*\* ENVELOPE RECORDS (?:[\w./-]*/)?([0-9A-Za-z]+) \*\*\*")
#: What Postfix itself puts in front of all that others wrote into a line of postqueue -j.
_FIRST = re.compile(
    rb'\{"queue_name": "(\w{1,20})", "queue_id": "([0-9A-Za-z]{5,30})", "arrival_time": (\d{1,12}), "message_size": (\d{1,19}), '
)
_LOGIN = b"named_attribute: sasl_username="
_DONE = re.compile(r"^postsuper: ([0-9A-Za-z]+): (?:placed on hold|released from hold|removed)", re.MULTILINE)
#: What postsuper(1) is asked for.
HOLD, RELEASE, DELETE = "-h", "-H", "-d"


@dataclass
class Message:
    """A message that waits. All of it but the queue id may be of an attacker's making."""

    queue_id: str
    #: incoming, active, deferred, hold.
    queue: str
    #: Wall clock, s since 1970.
    arrived: int
    size: int
    sender: str
    recipients: list[str]
    #: Why the first recipient's delivery was put off.
    delay: str = ""
    #: How it was found to be this login's: envelope, decisions.
    found_by: list[str] = field(default_factory=list)


class Queue:
    """The queue of one instance of Postfix.

    :param config: its configuration directory; empty: the default one.
    """

    def __init__(self, config: str = "") -> None:
        self._config = config

    def _command(self, name: str, *arguments: str) -> list[str]:
        path = os.pathsep.join((os.environ.get("PATH", ""), *_ALSO))
        program = shutil.which(name, path=path)
        if program is None:
            raise UserError(f"{name} is not found; is Postfix installed here?")
        return [program, *(["-c", self._config] if self._config else []), *arguments]

    def messages(self) -> Iterator[Message]:
        """All that waits (postqueue(1) -j).

        :raises UserError: Postfix does not tell.
        """
        with tempfile.TemporaryFile() as complaint:
            command = self._command("postqueue", "-j")
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaint,
                env=_environment(),
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    message = _message(line)
                    if message is not None:
                        yield message
            if process.returncode:
                complaint.seek(0)
                raise UserError(f"postqueue failed: {_last_line(complaint.read(4_096))}")

    def logins(self, queue_ids: Iterable[str]) -> dict[str, list[str]]:
        """The SASL logins in the envelope of each queue file that is there (postcat(1), as root).

        :raises UserError: postcat cannot be run.
        """
        found: dict[str, list[str]] = {}
        waiting = list(queue_ids)
        while waiting:
            batch, waiting = waiting[:BATCH], waiting[BATCH:]
            command = self._command("postcat", "-eq", *batch)
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                check=False,
            )
            told = _logins(done.stdout)
            found |= told
            if done.returncode:
                # It ends at the first file that is not there any more; those behind it are asked again.
                waiting = [each for each in batch if each not in told][1:] + waiting
        return found

    def act(self, option: str, queue_ids: Iterable[str]) -> list[str]:
        """Hold, release or delete (postsuper(1)); those of ``queue_ids`` for which it was done.

        :raises UserError: postsuper failed.
        """
        text = "".join(f"{each}\n" for each in queue_ids)
        done = subprocess.run(
            self._command("postsuper", option, "-"),
            input=text.encode("ascii"),
            capture_output=True,
            env=_environment(),
            check=False,
        )
        said = done.stderr.decode("utf-8", "replace")
        if done.returncode:
            raise UserError(f"postsuper failed: {_last_line(done.stderr)}")
        return _DONE.findall(said)


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _last_line(octets: bytes) -> str:
    lines = octets.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it does not say why"


def _message(line: bytes) -> Message | None:
    """One line of postqueue -j; ``None`` for what is none.

    Where an address has a control character Postfix wrote no sound JSON until the end of 2023 (its HISTORY, 20231208), and
    octets that are no UTF-8 may stand in it still. Such a mail must not go unseen.
    """
    try:
        values = json.loads(line.decode("utf-8", "replace"))
        recipients = [str(each["address"]) for each in values["recipients"]]
        delays = [str(each["delay_reason"]) for each in values["recipients"] if each.get("delay_reason")]
        message = Message(
            str(values["queue_id"]),
            str(values["queue_name"]),
            int(values["arrival_time"]),
            int(values["message_size"]),
            str(values["sender"]),
            recipients,
            delays[0] if delays else "",
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        first = _FIRST.match(line)
        if first is None:
            return None
        queue, queue_id = first[1].decode("ascii"), first[2].decode("ascii")
        return Message(queue_id, queue, int(first[3]), int(first[4]), "?", [])
    return message if QUEUE_ID.fullmatch(message.queue_id) else None


def _logins(output: bytes) -> dict[str, list[str]]:
    """What postcat -e printed, by queue id. Lines end in a line feed alone: a bare carriage return may be a sender's."""
    found: dict[str, list[str]] = {}
    here: list[str] = []
    for line in output.split(b"\n"):
        head = _HEAD.fullmatch(line)
        if head is not None:
            here = found.setdefault(head[1].decode("ascii"), [])
        elif line.startswith(_LOGIN):
            here.append(line.removeprefix(_LOGIN).decode("utf-8", "surrogateescape"))
    return found
