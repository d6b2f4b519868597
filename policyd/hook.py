"""``policyd-hook``: runs the commands of ``exec:`` channels beside the daemon, as another user and outside of its sandbox.

It takes one request a connection: JSON with the command, the seconds it has, and the alert. It runs only what stands in an
[[alert]] section of the configuration, which it reads itself: whoever gets at the socket can run nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import grp
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from typing import Any

from policyd import __version__
from policyd.errors import PolicydError

DEFAULT_CONFIG = "/etc/policyd/policyd.toml"
#: The longest request, octets, how long it may take to come, and how long a command may run, s.
MOST_REQUEST, PATIENCE, MOST_SECONDS = 2_000_000, 10.0, 60.0


def main(arguments: list[str] | None = None) -> int:
    """Entry point: serve the connection on standard input (systemd, ``Accept=yes``), or listen."""
    parser = argparse.ArgumentParser(
        prog="policyd-hook",
        description="Runs the commands of policyd's exec: alerts. Without --listen it serves the one connection that is its "
        "standard input, as systemd hands it over.",
    )
    parser.add_argument("--config", metavar="FILE", default=DEFAULT_CONFIG, help=f"default: {DEFAULT_CONFIG}")
    parser.add_argument(
        "--listen", metavar="PATH", help="Listen on this UNIX socket, where there is no systemd."
    )
    parser.add_argument(
        "--group", metavar="GROUP", default="policyd", help="Who may connect to it; default: policyd."
    )
    parser.add_argument("--version", action="version", version=f"policyd-hook {__version__}")
    options = parser.parse_args(arguments)
    if options.listen:
        return _listen(options.listen, options.group, options.config)
    with socket.socket(fileno=os.dup(0)) as sock:
        serve(sock, options.config)
    return 0


def _listen(path: str, group: str, config: str) -> int:
    try:
        listener = socket.socket(socket.AF_UNIX)
        # Nobody finds it before it is what it is to be.
        made = f"{path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(made)
        before = os.umask(0o177)
        listener.bind(made)
        os.umask(before)
        with contextlib.suppress(KeyError):
            os.chown(made, -1, grp.getgrnam(group).gr_gid)
            os.chmod(made, 0o660)
        listener.listen(16)
        os.rename(made, path)
    except OSError as error:
        sys.stderr.write(
            f"policyd-hook: {path}: {error.strerror}; name a socket in a directory that exists and is ours\n"
        )
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while True:
            with listener.accept()[0] as sock:
                serve(sock, config)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def serve(sock: socket.socket, config: str) -> None:
    """One request: ``{"error": ""}`` if the command ended with 0, else why not."""
    sock.settimeout(PATIENCE)
    try:
        said = answer(_read(sock), config)
    except (OSError, ValueError) as error:
        said = f"policyd-hook: {error}"
    # Who asked is gone, perhaps, and asks again.
    with contextlib.suppress(OSError):
        sock.sendall(json.dumps({"error": said}).encode())


def _read(sock: socket.socket) -> Any:
    data = b""
    while piece := sock.recv(65536):
        data += piece
        if len(data) > MOST_REQUEST:
            raise ValueError("the request is too long")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("the request is nested too deep") from None


def answer(asked: Any, config: str) -> str:
    """Run what is asked for; why that failed, or "".

    :raises ValueError: it is no request.
    """
    if not isinstance(asked, dict) or not isinstance(asked.get("command"), str) or "alert" not in asked:
        raise ValueError("this is no request of policyd's")
    command, seconds = asked["command"], asked.get("seconds")
    try:
        allowed = _commands(config)
    except PolicydError as error:
        return f"policyd-hook: {str(error).splitlines()[0]}"
    if command not in allowed:
        return f"policyd-hook: {command} stands in no [[alert]] of {config}"
    limit = (
        min(float(seconds), MOST_SECONDS)
        if isinstance(seconds, int | float) and seconds > 0
        else MOST_SECONDS
    )
    return run(command, json.dumps(asked["alert"]).encode() + b"\n", limit)


def _commands(config: str) -> set[str]:
    from policyd.checks import options_of
    from policyd.config import load

    return {each.to.partition(":")[2] for each in load(config, options_of).channels if each.kind == "exec"}


def run(command: str, data: bytes, seconds: float) -> str:
    """Run ``command`` without a shell, with ``data`` on its standard input; why it failed, or "".

    What it started ends with it, after so many seconds at the latest.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                [command],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            return f"{command}: {error.strerror}"
        try:
            process.communicate(data, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"{command} was ended: it ran for more than {seconds:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode == 0:
            return ""
        errors.seek(0)
        last = errors.read(2000).decode("utf-8", "replace").strip().rpartition("\n")[2]
        how = f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        return f"{command} failed with {how}" + (f": {last[:200]}" if last else "")


if __name__ == "__main__":
    sys.exit(main())
