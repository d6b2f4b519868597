"""A clean Debian of its own: a tree with packages, as a chroot or booted with systemd in a container.

The tree of a release is made once and kept under ``var/trees``, with all packages downloaded that policyd needs; each machine
is an overlay on it, without a network but loopback. The packages come from where this machine has its own from.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from tests.system.waiting import PATIENCE, wait_for

ROOT = Path(__file__).parents[2]
TREES = ROOT / "var/trees"
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
#: In the tree from the start.
BASE = ("systemd", "systemd-sysv", "dbus", "ca-certificates")
#: Downloaded, not installed: what policyd depends on or recommends, and what the tests need beside it.
LATER = (
    "logrotate", "postfix", "python3-click", "python3-dnspython", "python3-idna", "python3-spf", "python3-twisted",
    "python3-uvloop", "sqlite-utils",
)  # fmt: skip

_numbers = itertools.count()


def tree(release: str) -> Path:
    """The directory with a clean Debian ``release``."""
    sources = re.sub(
        r"^Suites: \w+ \w+-updates$",
        f"Suites: {release} {release}-updates",
        SOURCES.read_text(),
        flags=re.MULTILINE,
    )
    sources = re.sub(r"^Suites: \w+-security$", f"Suites: {release}-security", sources, flags=re.MULTILINE)
    download = (
        f'chroot "$1" apt-get install --yes --download-only -o APT::Install-Recommends=true {" ".join(LATER)}'
    )
    digest = hashlib.sha256(repr((sources, BASE, download)).encode()).hexdigest()[:12]
    made = TREES / f"{release}-{digest}"
    if made.exists():
        return made
    TREES.mkdir(parents=True, exist_ok=True)
    for old in TREES.glob(f"{release}-*"):
        shutil.rmtree(old)
    listed = TREES / f"{release}.sources"
    listed.write_text(sources)
    run(
        ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(BASE)}", "--skip=cleanup/apt",
         "--format=directory", f"--customize-hook={download}", release, f"{made}.part", str(listed)],
        timeout=540,
    )  # fmt: skip
    Path(f"{made}.part").rename(made)
    return made


def run(
    command: list[str], *, code: int | None = 0, timeout: float = 240, text: str | None = None, **more: str
) -> str:
    """What a command prints, stderr behind stdout; ``code`` is how it is to end, ``None`` for any way."""
    done = subprocess.run(
        command, input=text, stdin=None if text is not None else subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=timeout, env={**os.environ, **more},
    )  # fmt: skip
    said = f"{done.stdout}\n{done.stderr}"[-4000:]
    assert code is None or done.returncode == code, f"{command} ended with {done.returncode}:\n{said}"
    return done.stdout + done.stderr


class Machine:
    """One overlay on a tree; a context manager. Not booted, its commands run in a chroot, as in an image that is being built."""

    def __init__(self, release: str, *, boot: bool) -> None:
        assert os.geteuid() == 0, "containers need root"
        self.release = release
        self._boot = boot
        self._base = tree(release)
        self.directory = Path(tempfile.mkdtemp(prefix="policyd-machine-", dir="/tmp"))
        self.root = self.directory / "root"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        for name in ("root", "upper", "work"):
            (self.directory / name).mkdir()
        self.directory.chmod(0o755)
        layers = f"lowerdir={self._base},upperdir={self.directory}/upper,workdir={self.directory}/work"
        run(["mount", "-t", "overlay", "overlay", "-o", layers, str(self.root)])
        try:
            (self.root / "etc/hostname").write_text("mx\n")
            (self.root / "etc/hosts").write_text("127.0.0.1 localhost mx mx.example.org\n")
            # Containers have no hardware clock or kernel messages of their own.
            for unit in (
                "apt-daily.timer",
                "apt-daily-upgrade.timer",
                "e2scrub_all.timer",
                "systemd-logind.service",
            ):
                (self.root / "etc/systemd/system" / unit).symlink_to("/dev/null")
            if self._boot:
                self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        with open(self.directory / "console", "wb") as console:
            self._nspawn = subprocess.Popen(
                ["systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}", "--private-network", "--register=no",
                 "--keep-unit", "--console=pipe", f"--machine=policyd-{os.getpid()}-{next(_numbers)}"],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
            )  # fmt: skip
        wait_for(self._booted, self._console)

    def _booted(self) -> bool:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, self._console()
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        # The first child prepares the container and ends when the second one, its first process, begins.
        self._leader = int(children[0]) if len(children) == 1 else 0
        state = self.sh("systemctl is-system-running", code=None).strip() if self._leader else ""
        return state in ("running", "degraded")

    def _console(self) -> str:
        said = (self.directory / "console").read_text(errors="replace")[-4000:]
        return (
            f"{said}\n{self.sh('systemctl list-jobs; systemctl --failed', code=None) if self._leader else ''}"
        )

    def __exit__(self, *_: object) -> None:
        if self._nspawn is not None:
            # Its first process: all others end with it.
            if self._leader:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._leader, signal.SIGKILL)
            self._nspawn.terminate()
            self._nspawn.wait(PATIENCE)
        run(["umount", "--lazy", str(self.root)])
        shutil.rmtree(self.directory)

    def command(self, *command: str) -> list[str]:
        """The command that runs ``command`` there."""
        clean = [
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL=C.UTF-8",
            "HOME=/root",
            "DEBIAN_FRONTEND=noninteractive",
        ]
        if self._leader:
            inside = [
                "nsenter",
                f"--target={self._leader}",
                "--mount",
                "--uts",
                "--ipc",
                "--net",
                "--pid",
                "--root",
                "--wd",
            ]
        else:
            # systemd-tmpfiles does nothing without /proc, which whoever builds an image mounts.
            proc = f"--mount-proc={self.root}/proc"
            up = 'ip link set lo up && exec chroot "$@"'
            inside = [
                "unshare",
                "--net",
                "--mount",
                "--pid",
                "--fork",
                proc,
                "sh",
                "-c",
                up,
                "chroot",
                str(self.root),
            ]
        return [*inside, *clean, *command]

    def sh(self, script: str, *, code: int | None = 0, text: str | None = None, timeout: float = 240) -> str:
        """What a shell script prints there."""
        return run(self.command("sh", "-euc", script), code=code, text=text, timeout=timeout)

    def put(self, source: Path, target: str) -> None:
        """Copy a file there."""
        place = self.root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)

    def install(self, package: Path, *more: str) -> str:
        """Install a package file as an admin does, with what it depends on, and ``more`` packages."""
        self.put(package, f"/root/{package.name}")
        return self.apt("install", f"/root/{package.name}", *more)

    def apt(self, *arguments: str, code: int | None = 0) -> str:
        """Run apt-get, without a network."""
        options = ["Dpkg::Options::=--force-confold", "Dpkg::Options::=--force-unsafe-io"]
        command = ["apt-get", "--yes", *[word for option in options for word in ("-o", option)], *arguments]
        return run(self.command(*command), code=code)
