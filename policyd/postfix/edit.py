"""Changes Postfix's configuration, checks it, and takes it back: at once if Postfix refuses it, or later as it was before.

Beside main.cf stay ``main.cf.before-policyd`` and ``master.cf.before-policyd``, and ``policyd-wiring.json`` with each
changed parameter. While nobody else has changed the two files, taking it back restores them to the last octet; else
only what was changed here is put back, and policyd's checks are taken out of lists that were edited since.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

from policyd.errors import UserError
from policyd.postfix import lists
from policyd.postfix.addresses import is_ours
from policyd.postfix.settings import PostfixError, Settings, postconf, run
from policyd.postfix.wiring import Change, Plan

FILES = ("main.cf", "master.cf")
SUFFIX = ".before-policyd"
STATE = "policyd-wiring.json"


class Editor:
    """One instance's files."""

    def __init__(self, found: Settings) -> None:
        self.settings = found
        self.directory = found.values.get("config_directory", found.directory or "/etc/postfix")

    def path(self, name: str) -> str:
        """A file beside main.cf."""
        return os.path.join(self.directory, name)

    # --- there -------------------------------------------------------------------------------------------------------

    def apply(self, plan: Plan) -> str:
        """Make the changes, and have Postfix check and take them; what ``postfix check`` warned about.

        :raises PostfixError: Postfix refuses them, or they cannot be written. Everything is as it was then.
        """
        state = self.state()
        before = {name: self._read(name) for name in FILES}
        # The copies are of before the first change; a file that somebody changed since is not theirs any more.
        exact = state is None or state["files"] == {name: _digest(text) for name, text in before.items()}
        made = state["changes"] if state is not None else []
        try:
            if state is None:
                for name in FILES:
                    self._write(name + SUFFIX, before[name], like=name)
            changes = _joined(made, plan.changes)
            # Before the first of them: who is killed in the middle can be taken back, too.
            self._record(changes, {})
            self._set(plan.changes)
            warned = self.check()
            self._record(changes, {name: _digest(self._read(name)) for name in FILES} if exact else {})
            self.reload()
        except BaseException:
            for name in FILES:
                self._write(name, before[name], like=name)
            if state is None:
                self._forget()
            else:
                self._write(STATE, (json.dumps(state, indent=2) + "\n").encode(), like="main.cf")
            # Of a Postfix that took half of it, too.
            with contextlib.suppress(PostfixError):
                self.reload()
            raise
        return warned

    def preview(self, plan: Plan) -> dict[str, tuple[str, str]]:
        """main.cf and master.cf, each as it is and as it will be."""
        with tempfile.TemporaryDirectory(prefix="policyctl-") as copy:
            for name in (*FILES, "dynamicmaps.cf"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copy(self.path(name), copy)
            self._set(plan.changes, copy)
            found = {}
            for name in FILES:
                with open(os.path.join(copy, name), "rb") as file:
                    found[name] = (_text(self._read(name)), _text(file.read()))
            return found

    def _set(self, changes: Sequence[Change], directory: str = "") -> None:
        base = postconf(directory or self.settings.directory)
        for flag in ("-e", "-P"):
            texts = [change.text for change in changes if change.flag == flag]
            if texts:
                run([*base, flag, *texts])

    def check(self) -> str:
        """``postfix check``, and whether postconf reads the files without an error; what they warned about.

        :raises PostfixError: it fails.
        """
        told = run(["postfix", *self._option(), "check"]).stderr
        for arguments in ((), ("-M",), ("-Px",)):
            run([*postconf(self.settings.directory), *arguments])
        return " ".join(told.split())

    def running(self) -> bool:
        """Whether this instance runs."""
        return run(["postfix", *self._option(), "status"], check=False).returncode == 0

    def reload(self) -> bool:
        """Have a Postfix that runs take the files; whether it does.

        :raises PostfixError: it refuses.
        """
        if not self.running():
            return False
        run(["postfix", *self._option(), "reload"])
        return True

    def _option(self) -> list[str]:
        return ["-c", self.settings.directory] if self.settings.directory else []

    # --- and back ----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any] | None:
        """What was changed here; ``None``: nothing.

        :raises UserError: the record is not to be read.
        """
        try:
            with open(self.path(STATE), encoding="utf-8") as file:
                found = json.load(file)
            found["changes"] = [Change(*each) for each in found["changes"]]
            found["files"] = dict(found["files"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path(STATE)}: {error}; compare main.cf and master.cf with their copies *{SUFFIX}, then remove it"
            ) from None
        return dict(found)

    def whole(self, state: dict[str, Any]) -> bool:
        """Whether nobody has changed the files since."""
        return bool(state["files"] == {name: _digest(self._read(name)) for name in FILES})

    def undo(self, state: dict[str, Any], addresses: Sequence[str]) -> list[str]:
        """Take everything back; what had to stay, one line each.

        :raises PostfixError: Postfix refuses what comes of it. Everything is as it was then.
        """
        before = {name: self._read(name) for name in FILES}
        notes: list[str] = []
        try:
            if self.whole(state):
                for name in FILES:
                    self._write(name, self._read(name + SUFFIX), like=name)
            else:
                notes = self._undo_each(state["changes"], addresses)
            self.check()
            self.reload()
        except BaseException:
            for name in FILES:
                self._write(name, before[name], like=name)
            with contextlib.suppress(PostfixError):
                self.reload()
            raise
        self._forget()
        return notes

    def _undo_each(self, changes: Sequence[Change], addresses: Sequence[str]) -> list[str]:
        base = postconf(self.settings.directory)
        notes = []
        entries = {entry.key: entry for entry in self.settings.entries}
        # The services first: what they refer to must be there until then.
        for change in sorted(changes, key=lambda each: not each.service):
            entry = entries.get(change.service)
            if change.service and entry is None:
                continue
            now = entry.raw.get(change.name) if entry else self.settings.raw.get(change.name)
            if now is None:
                continue
            wanted: str | None = change.before
            if _plain(now) != _plain(change.after):
                kept = [item for item in lists.items(now) if not self._asks(item, addresses)]
                wanted = (",".join if change.service else ", ".join)(map(str, kept))
                notes.append(
                    f"{change.service or 'main.cf'}: {change.name} was edited since; it is now {wanted or 'empty'}"
                )
            elif wanted is None and not change.service and self._referred(change.name, changes):
                notes.append(f"main.cf: {change.name} stays, for something else refers to it")
                if change.name.startswith("policyd_"):
                    continue
                # What it names of policyd's goes, and would be undefined in it.
                kept = [item for item in lists.items(now) if not self._asks(item, addresses)]
                wanted = ", ".join(map(str, kept))
            flag = "-P" if change.service else "-e"
            if wanted is None:
                name = f"{change.service}/{change.name}" if change.service else change.name
                run([*base, "-PX" if change.service else "-X", name])
            else:
                run([*base, flag, change._replace(after=wanted).text])
        return notes

    def _asks(self, item: lists.Item, addresses: Sequence[str]) -> bool:
        name = item.name.strip("${}()")
        parts = lists.items(self.settings.values.get(name, "")) if item.name.startswith("$") else [item]
        return bool(parts) and all(is_ours(part, addresses, self.settings.queue_directory) for part in parts)

    def _referred(self, name: str, changes: Sequence[Change]) -> bool:
        """Whether a parameter that was not changed here, or was edited since, names this one, which then would be undefined."""
        if name.startswith("smtpd_"):
            # Postfix's own: unset, it has its default.
            return False
        ours = {(change.service, change.name): _plain(change.after) for change in changes}
        for service, raw in [
            ("", self.settings.raw),
            *((entry.key, entry.raw) for entry in self.settings.entries),
        ]:
            for other, value in raw.items():
                known = ours.get((service, other))
                if known == _plain(value) or name not in _names(value):
                    continue
                if (
                    known is None
                    or not lists.items(value)
                    or not any(f"${name}" == item.name for item in lists.items(value))
                ):
                    return True
        return False

    # --- files -------------------------------------------------------------------------------------------------------

    def _read(self, name: str) -> bytes:
        with open(self.path(name), "rb") as file:
            return file.read()

    def _write(self, name: str, data: bytes, like: str) -> None:
        """Put a file in its place whole, with the rights of another."""
        path = self.path(name)
        partial = f"{path}.policyd-new"
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(self.path(like), partial)
            rights = os.stat(self.path(like))
            os.chown(partial, rights.st_uid, rights.st_gid)
        os.replace(partial, path)

    def _record(self, changes: Sequence[Change], files: dict[str, str]) -> None:
        record = {"changes": changes, "files": files}
        self._write(STATE, (json.dumps(record, indent=2) + "\n").encode(), like="main.cf")

    def _forget(self) -> None:
        for name in (STATE, *(name + SUFFIX for name in FILES)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(name))


def _joined(old: Sequence[Change], new: Sequence[Change]) -> list[Change]:
    """Each parameter once, with its first value before and its last after."""
    found = {(change.service, change.name): change for change in old}
    for change in new:
        first = found.get((change.service, change.name))
        found[change.service, change.name] = change._replace(before=first.before) if first else change
    return list(found.values())


def _plain(value: str) -> str:
    return " ".join(value.split())


def _names(value: str) -> set[str]:
    return {word.strip("${}()") for word in lists.words(value) if word.startswith("$")}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
