"""What the figures depend on: the machine, the versions, the commit, and how long the disk takes to say "written"."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import os
import platform
import sqlite3
import subprocess
import time
from pathlib import Path

from bench.servers import ROOT

_LIBRARIES = ("twisted", "uvloop", "dnspython", "click", "sqlite-utils")


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def _file_system(directory: Path) -> str:
    kind = _output("stat", "--file-system", "--format=%T", str(directory))
    return kind or "unknown"


def _version(library: str) -> str:
    try:
        return f"{library} {importlib.metadata.version(library)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {library}"


def commit() -> str:
    """The commit that is measured, and whether files differ from it."""
    name = _output("git", "rev-parse", "--short=12", "HEAD")
    if not name:
        return "no git checkout"
    changed = _output("git", "status", "--porcelain", "--", "policyd", "bench")
    return f"{name} with uncommitted changes in policyd/ or bench/" if changed else name


def describe(directory: Path) -> list[str]:
    """Lines that say on what was measured; ``directory`` holds the databases."""
    loop = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio's own loop"
    peers = [
        f"{package} {version}"
        for package in ("policyd-rate-limit", "postfwd")
        if (version := _output("dpkg-query", "--show", "--showformat", "${Version}", package))
    ]
    now = datetime.datetime.now(datetime.UTC)
    return [
        f"date      {now:%Y-%m-%d %H:%M} UTC, commit {commit()}",
        f"machine   {_processor()}, {os.cpu_count()} processors, {_memory():.0f} GB; Linux {platform.release()}",
        f"load      {os.getloadavg()[0]:.2f} at the start",
        f"disk      {directory}: {_file_system(directory)}; {fdatasync(directory)}",
        f"versions  Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        + ", ".join(_version(library) for library in _LIBRARIES),
        f"peers     {', '.join(peers) or 'none installed'}",
        f"policyd   on {loop}, durability full, decision log to a file, checks allow, bans, quota with two limits",
    ]


def fdatasync(directory: Path, times: int = 200) -> str:
    """How long it takes to append 4 KiB to a file in ``directory`` and have it on disk."""
    took = []
    path = directory / "fdatasync.probe"
    with path.open("wb", buffering=0) as probe:
        for _ in range(times):
            probe.write(b"\0" * 4096)
            begin = time.perf_counter()
            os.fdatasync(probe.fileno())
            took.append((time.perf_counter() - begin) * 1000)
    path.unlink()
    took.sort()
    return f"fdatasync median {took[times // 2]:.2f} ms, p99 {took[times * 99 // 100]:.2f} ms"
