"""False verdicts and power of the verdict, on simulated pairs of methods.

    python tests/benchmarks/verdict_law.py [--pairs 2000] [--power-pairs 1000] [--seeds 3 5]

The first table holds the share of verdicts (BEATS or LOSES) between methods that do not differ, and the shares of
intervals without 0 if one looks only at seeds, only at test units, or at these two without the interval over both. The
second holds the share of correct verdicts at known differences;
the difference is the mean over all pairs of the row.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import scipy

sys.path.insert(0, str(Path(__file__).parents[1]))

from verdict_scene import SETTINGS, is_at_most, rates, verdicts


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000, help="pairs of methods that do not differ")
    parser.add_argument("--power-pairs", type=int, default=1000, help="pairs of methods at each difference")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5], help="seeds of each method")
    options = parser.parse_args()
    start = time.perf_counter()
    print(f"scipy {scipy.__version__}, numpy {np.__version__}, {options.pairs:,} pairs of methods in each row\n")
    print("| false verdicts (%) | seeds | verdict | seeds alone | units alone | seeds and units | law |")
    print("|---|---|---|---|---|---|---|")
    for setting in SETTINGS:
        for seeds in options.seeds:
            found = rates(verdicts(setting.draw, seeds=seeds, count=options.pairs))
            shares = " | ".join(f"{100 * share:.1f}" for share in found.values())
            law = "holds" if is_at_most(found["verdict"], options.pairs) else "broken"
            print(f"| {setting.name} | {seeds} | {shares} | {law} |", flush=True)
    print(f"\n{options.power_pairs:,} pairs of methods in each row\n")
    print("| power (%) | true difference | " + " | ".join(f"{seeds} seeds" for seeds in options.seeds) + " |")
    print("|---|---|" + "---|" * len(options.seeds))
    for setting in SETTINGS:
        for shift in setting.shifts:
            differences, shares = [], []
            for seeds in options.seeds:
                found = verdicts(setting.draw, seeds=seeds, count=options.power_pairs, shift=shift, start=1)
                differences += [verdict.difference for verdict in found]
                sign = np.sign(np.mean(differences))
                right = "BEATS" if sign > 0 else "LOSES"
                shares.append(100 * float(np.mean([verdict.outcome == right for verdict in found])))
            row = " | ".join(f"{share:.1f}" for share in shares)
            print(f"| {setting.name} | {abs(np.mean(differences)):.3f} | {row} |", flush=True)
    print(f"\n{time.perf_counter() - start:,.0f} s")


if __name__ == "__main__":
    main()
