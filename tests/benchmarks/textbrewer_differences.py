"""How far the TextBrewer drop-in is from TextBrewer: ``python tests/benchmarks/textbrewer_differences.py``.

Each line is one distillation of 50 optimizer steps, through TextBrewer from PyPI and through the drop-in from the same seeds:
the largest difference between two logged losses, and between two of the student's weights at the end.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from textbrewer_case import CASES
from textbrewer_twin import loss_gap, run, weight_gap

import kdplug.integrations.textbrewer as dropin


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    logging.disable()
    import textbrewer

    print("| config | batches | loss | weights |\n|---|---|---|---|")
    for name, case in CASES.items():
        with TemporaryDirectory() as ours, TemporaryDirectory() as theirs:
            pair = run(dropin, case, Path(ours)), run(textbrewer, case, Path(theirs))
        batches = sum(tag == "scalar/total_loss" for tag, _, _ in pair[0].scalars)
        label = "" if case.distiller == "Train" else f"{case.distiller}: "
        print(f"| {label}{name} | {batches} | {loss_gap(*pair):.1e} | {weight_gap(*pair):.1e} |")


if __name__ == "__main__":
    main()
