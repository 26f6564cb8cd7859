"""Run a script in two processes on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def run_in_two_processes(folder: Path, script: str, test: Path | None = None, *, timeout: float = 150) -> None:
    """Write the script to ``folder`` and run it there with ``folder`` as its argument.

    It may import the modules of the tests and of ``tests/distillers``, and those next to ``test``.
    """
    (folder / "script.py").write_text(script)
    path = os.pathsep.join(
        [str(TESTS), str(TESTS / "distillers"), *([] if test is None else [str(test.parent)]), *sys.path]
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [*launch, "script.py", str(folder)]
    done = subprocess.run(
        command, cwd=folder, env=environment, timeout=timeout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
