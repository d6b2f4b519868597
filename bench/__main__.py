"""``python -m bench [NAME ...] [--quick]``: measures, prints the figures with what they depend on."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

from bench import (
    alerting,
    detectors,
    dnsflood,
    dnslists,
    dnsspf,
    dnstrouble,
    figures,
    learning,
    machine,
    servers,
)

FIGURES = figures.FIGURES | {
    "detectors": detectors.detectors,
    "accounts": detectors.accounts,
    "dns-warm": dnslists.warm,
    "dns-cold": dnslists.cold,
    "dns-trouble": dnstrouble.trouble,
    "spf-hostile": dnsspf.spf_hostile,
    "greylist-flood": dnsflood.flood,
    "learn": learning.learn,
    "alerts": alerting.alerts,
}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure policyd beside a server that does nothing and beside its peers, in one run.",
        epilog="; ".join(
            f"{name}: {(measure.__doc__ or '').splitlines()[0]}" for name, measure in FIGURES.items()
        ),
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"{', '.join(FIGURES)} (default: all)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="minutes instead of an hour: whether it works, not how fast it is",
    )
    parser.add_argument(
        "--triplets",
        type=int,
        metavar="NUMBER",
        help=f"how many greylist-flood sends (default {figures.FULL.triplets:,}, some half an hour)",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=servers.ROOT / "var",
        help="where the databases are made and removed again; up to 4 GB, a real disk (default: var/)",
    )
    return parser


def main() -> int:
    """Measure what was asked for; 1 when something could not be measured."""
    parser = arguments()
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in FIGURES]
    if unknown:
        parser.error(f"{', '.join(unknown)}: there is no such figure; choose from {', '.join(FIGURES)}")
    names = given.names or list(FIGURES)
    if not given.names:
        names.remove("held")  # part of "size", on the large database
    scale = figures.QUICK if given.quick else figures.FULL
    if given.triplets is not None:
        if given.triplets < dnsflood.PARTS:
            parser.error(f"--triplets {given.triplets}: must be at least {dnsflood.PARTS}")
        scale = dataclasses.replace(scale, triplets=given.triplets)
    began = time.monotonic()
    failed = False
    try:
        with figures.work_directory(given.directory.absolute()) as work:
            for line in machine.describe(work):
                print(line, flush=True)
            if given.quick:
                print(
                    "quick     a few short rounds and a small database: whether it works, not how fast it is"
                )
            for name in names:
                print(f"\n{name}: {(FIGURES[name].__doc__ or '').splitlines()[0]}", flush=True)
                try:
                    FIGURES[name](scale, work, lambda line: print(f"  {line}", flush=True))
                except servers.Trouble as trouble:
                    failed = True
                    print(f"  NOT MEASURED: {trouble}", flush=True)
            print(f"\nload      {os.getloadavg()[0]:.2f} at the end, after {time.monotonic() - began:.0f} s")
    except OSError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; everything it started was ended", file=sys.stderr)
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
