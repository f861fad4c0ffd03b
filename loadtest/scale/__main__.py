"""`python -m loadtest.scale`: what a load needs; `--page` writes the tables of docs/scale.md.

Exit code 1 if no number of replicas carries it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.scale.autoscaling import MANIFEST, autoscaler_of
from loadtest.scale.balancing import read as read_balancing
from loadtest.scale.figures import FILE, BadFigures, read
from loadtest.scale.page import carried, needed, on_page, tables
from loadtest.scale.plan import Load, TooMuch, plan


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.scale", description="what a load needs, from figures")
    parser.add_argument("--requests-per-hour", type=_positive, default=1e6, metavar="N", help="default: 1e6")
    parser.add_argument("--streams", type=_positive, default=1e5, metavar="N", help="open at the same time (1e5)")
    parser.add_argument("--tokens-per-second", type=_positive, default=30.0, metavar="N", help="of each stream (30)")
    parser.add_argument(
        "--tokens-per-chunk", type=_positive, default=1.0, metavar="N", help="1 unless pods bundle them"
    )
    parser.add_argument("--pods", type=int, default=0, metavar="N", help="default: a pod for each 128 streams")
    parser.add_argument("--callers", type=int, default=10_000, metavar="N", help="keys or users with limits (10,000)")
    parser.add_argument("--target", type=_positive, metavar="PART", help="of a core that is used; default: deploy/'s")
    parser.add_argument("--figures", type=Path, default=FILE, metavar="FILE", help="default: those of this checkout")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page's tables instead")
    asked = parser.parse_args(arguments)
    scaler = autoscaler_of(MANIFEST.read_text("utf-8"))
    try:
        figures, sources = read(asked.figures)
        if asked.page:
            made = tables(figures, sources, scaler, read_balancing())
            asked.page.write_text(on_page(asked.page.read_text("utf-8"), made), "utf-8")
            return 0
        load = Load(
            "needs",
            asked.requests_per_hour,
            asked.streams,
            asked.tokens_per_second,
            asked.tokens_per_chunk,
            asked.pods,
            asked.callers,
        )
        target = asked.target or scaler.target
        print(carried(figures, target), needed([plan(figures, load, target, scaler.least)]), sep="\n\n")
    except (BadFigures, TooMuch) as error:
        print(f"scale: {error}", file=sys.stderr)
        return 1
    return 0


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: not above 0")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
