"""Fail when a part that must not be wrong is tested too thinly: reads the data of `coverage run`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

LEAST_PERCENT = 95.0
MUST_HOLD = (
    "policyd/wire.py",
    "policyd/window.py",
    "policyd/settle.py",
    "policyd/trial.py",
    "policyd/engine.py",
    "policyd/store/ledger.py",
    "policyd/store/decider.py",
    "policyd/store/counters.py",
    "policyd/store/unread.py",
)


def main() -> int:
    """Print the table, then one line for each part below the bar; 1 if there is any."""
    subprocess.run([sys.executable, "-m", "coverage", "report"], check=True)
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "coverage.json"
        subprocess.run([sys.executable, "-m", "coverage", "json", "-q", "-o", str(target)], check=True)
        files = json.loads(target.read_text(encoding="utf-8"))["files"]

    thin = []
    for name in MUST_HOLD:
        if name not in files:
            thin.append(f"{name}: not measured; does it still exist under this name?")
            continue
        summary = files[name]["summary"]
        branches, taken = summary["num_branches"], summary["covered_branches"]
        percent = 100.0 * taken / branches if branches else 100.0
        if min(percent, summary["percent_covered"]) < LEAST_PERCENT:
            missed = files[name]["missing_branches"]
            thin.append(
                f"{name}: {taken} of {branches} branches taken ({percent:.1f} %), {LEAST_PERCENT:.0f} % needed; "
                f"not taken, as line to line: {missed}"
            )
        else:
            print(f"{name}: {percent:.1f} % of its branches taken")
    for line in thin:
        print(f"check_coverage: {line}", file=sys.stderr)
    return 1 if thin else 0


if __name__ == "__main__":
    sys.exit(main())
