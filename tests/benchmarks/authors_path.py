"""The way of a plugin's author, timed: the commands of docs/tutorials/first-loss.md in a clean environment, one by one.

    python tests/benchmarks/authors_path.py [--keep FOLDER]

The environment is a new one that sees the packages of the one which runs this, so nothing is downloaded; pip builds without
isolation and without an index. The exit status is that of the first command that fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "first-loss.md"
_BLOCK = re.compile(r"^```(sh|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LAUNCHERS = {
    "kdplug": "from kdplug.cli.app import main; main()",
    **{
        name: f"import runpy; runpy.run_module('{name}', run_name='__main__', alter_sys=True)"
        for name in ("pip", "pytest")
    },
}


@dataclass(frozen=True)
class Step:
    """A command, or the edit of a file: its name in ``text``, and the line that is replaced."""

    kind: Literal["sh", "diff"]
    text: str
    old: str = ""
    new: str = ""

    def __str__(self) -> str:
        return self.text if self.kind == "sh" else f"(edit one line of {self.text})"


def steps(page: Path = PAGE) -> Iterator[Step]:
    """What a page tells its reader to do, in order."""
    for kind, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        lines = block.splitlines()
        if kind == "sh":
            yield from (Step("sh", line) for line in lines if line)
        else:
            file, old, new = lines
            yield Step("diff", file.removeprefix("--- "), old.removeprefix("-"), new.removeprefix("+"))


def make_environment(folder: Path) -> dict[str, str]:
    """A new virtual environment that sees the packages of this one, and the variables that commands in it need."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    seen = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    lines = [f"import site; site.addsitedir({place!r})" for place in seen]
    (Path(packages) / "surrounding.pth").write_text("\n".join(lines) + "\n")
    for name, code in _LAUNCHERS.items():
        (folder / "bin" / name).write_text(f"#!{python}\nimport sys\nsys.argv[0] = {name!r}\n{code}\n")
        (folder / "bin" / name).chmod(0o755)
    kept = {
        key: text for key, text in os.environ.items() if not key.startswith(("KDPLUG_", "PIP_", "PYTHON", "VIRTUAL_"))
    }
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_QUIET": "1"}
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    return {**kept, **pip, "PATH": path, "VIRTUAL_ENV": str(folder), "OMP_NUM_THREADS": "1"}


def walk(folder: Path) -> Iterator[tuple[Step, float, subprocess.CompletedProcess[str] | None]]:
    """Take each step in ``folder``; the step, its seconds, and what the command gave. Ends at the first that fails."""
    environment = make_environment(folder / "environment")
    place = folder / "work"
    place.mkdir()
    for step in steps():
        start = time.monotonic()
        if step.kind == "diff":
            _edit(place / step.text, step.old, step.new)
            yield step, time.monotonic() - start, None
            continue
        command = f"{step.text} && pwd > {folder / 'place'}"
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        yield step, time.monotonic() - start, done
        if done.returncode:
            return
        place = Path((folder / "place").read_text().strip())


def _edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    if text.count(f"{old}\n") != 1:
        raise SystemExit(f"{file} has no line, or several, that reads: {old}")
    file.write_text(text.replace(f"{old}\n", f"{new}\n"), encoding="utf-8")


def main() -> int:
    """Walk the path and print the seconds of each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="Work in this folder, and leave it there.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdplug-author-") as temporary:
        folder = (given.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        total = 0.0
        for step, seconds, done in walk(folder):
            total += seconds
            print(f"{seconds:7.1f} s  {step}", flush=True)
            if done is not None and done.returncode:
                print(done.stdout + done.stderr)
                return done.returncode
        print(f"{total:7.1f} s  in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
