"""Run what the README and the docs tell users to install and to run, in fresh environments that take kdplug from wheels.

    python tests/packaging/documented_installs.py DIST [--torch 2.13.0] [--only TEXT]

DIST is the folder that ``.ci/build`` fills. A page marks what is run with comments, which renderers do not show::

    <!-- fresh environment -->
    ...
    <!-- end of fresh environment -->

Between them, ``sh`` and indented blocks run in bash, ``python`` and ``py`` blocks in a process each, and a block whose first
line is ``# NAME`` is written to that file. The opening comment may add ``has=REQUIREMENT``: installed before the span
begins; ``files=text-classifier``: ``text_classifier.py`` writes a model and data once something is installed; ``in=clone``:
the span starts in a copy of the checkout and installs that instead of the wheels.

Environments share one thing, an installation of torch with the packages that torch requires. All else is installed by the
commands on the page, and every kdplug distribution is constrained to its wheel in DIST, so none comes from an index.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("plugins/*/README.md"))]
PAGES += sorted((ROOT / "examples").rglob("*.md"))
BEGIN, END = re.compile(r"<!-- fresh environment(?: (.*))? -->"), "<!-- end of fresh environment -->"

# A recipe that trains for minutes runs here with these settings added; what it has to show is that it runs.
SHORTER = {"kdplug run examples/digits.yaml": " --set training.num_epochs=2 --set task.teacher_epochs=2"}

WITHOUT_PLUGINS = """
import kdplug

assert not [*kdplug.losses], [*kdplug.losses]
try:
    kdplug.DistillationConfig().resolved()
except kdplug.EntryError as error:
    assert "pip install kdplug-presets" in str(error), error
    print(error)
else:
    raise AssertionError("the default loss resolves although no plugin is installed")
"""
FROM_WHEELS = """
import importlib.metadata, sys
for name, version in {versions}.items():
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        continue
    assert found.version == version and str(found.locate_file("")).startswith({folder!r}), (name, found.version)
"""


@dataclass(frozen=True)
class Step:
    """One block of a page: shell commands, a Python program, or a file to write."""

    kind: Literal["sh", "python", "file"]
    text: str
    name: str = ""


@dataclass(frozen=True)
class Span:
    """What a page marks to run in one environment."""

    page: Path
    line: int
    options: dict[str, str]
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, language and text of each block of a Markdown page; an indented block has the language ``indented``."""
    language, start, held = "", 0, []
    previous = ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.fullmatch(r"```(\w*).*", line)
        if language and language != "indented":
            if fence:
                yield start, language, "\n".join(held)
                language = ""
            else:
                held.append(line)
        elif line.startswith("    ") and (language or not previous.strip()):
            if not language:
                language, start, held = "indented", number, []
            held.append(line[4:])
        else:
            if language:
                yield start, language, "\n".join(held)
                language = ""
            if fence:
                language, start, held = fence[1] or "text", number, []
        previous = line
    if language:
        yield start, language, "\n".join(held)


def step(language: str, text: str) -> Step | None:
    """What a block asks for, ``None`` where it is there to be read."""
    name = re.match(r"# ([\w.-]+\.\w+)\n", text)
    if name:
        return Step("file", text, name[1])
    if language in {"sh", "indented"}:
        return Step("sh", text)
    return Step("python", text) if language in {"python", "py"} else None


def spans(page: Path) -> Iterator[Span]:
    """The spans of a page. Raises: ``ValueError`` where a comment lacks its partner or names an unknown option."""
    text = page.read_text(encoding="utf-8")
    start, options = 0, {}
    for number, line in enumerate(text.splitlines(), 1):
        begin = BEGIN.fullmatch(line)
        if (begin and start) or (line == END and not start):
            raise ValueError(f"{page}:{number}: this comment has no partner")
        if begin:
            start, options = number, dict(option.split("=", 1) for option in (begin[1] or "").split())
            if options.keys() - {"has", "files", "in"}:
                raise ValueError(f"{page}:{number}: unknown option in {line}")
        elif line == END:
            inside = [step(kind, body) for at, kind, body in blocks(text) if start < at < number]
            yield Span(page, start, options, tuple(one for one in inside if one is not None))
            start = 0
    if start:
        raise ValueError(f"{page}:{start}: this comment has no partner")


class Environment:
    """A virtual environment without packages of its own, which sees those of ``below``."""

    def __init__(self, folder: Path, below: tuple[Path, ...], constraints: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.folder, self.bin = folder, folder / "bin"
        self.packages = next(folder.glob("lib/python3*/site-packages"))
        lines = (f"import site; site.addsitedir({str(place)!r})\n" for place in below)
        (self.packages / "below.pth").write_text("".join(lines))
        for name, code in {
            "pip": "import runpy; runpy.run_module('pip', run_name='__main__', alter_sys=True)",
            "kdplug": "from kdplug.cli.app import main; main()",
        }.items():
            if (
                name == "pip" or len(below) > 1
            ):  # installing kdplug writes the command; one that lies below was written there
                (self.bin / name).write_text(f"#!{self.bin / 'python'}\n{code}\n")
                (self.bin / name).chmod(0o755)
        own = str(Path(sys.prefix) / "bin")  # its kdplug, ruff and pytest must not stand in for one that a page forgot
        path = [folder for folder in os.environ["PATH"].split(os.pathsep) if folder != own]
        self.variables = {
            **{key: text for key, text in os.environ.items() if not key.startswith(("KDPLUG_", "PYTHON", "VIRTUAL_"))},
            "PATH": os.pathsep.join([str(self.bin), *path]),
            "VIRTUAL_ENV": str(folder),
            "PIP_CONSTRAINT": str(constraints),
            "PIP_QUIET": "1",
            "PIP_NO_COMPILE": "1",  # halves the time; Python compiles what is imported
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
            "HF_HUB_OFFLINE": "1",
            "PYTHONNOUSERSITE": "1",
        }

    def run(self, words: list[str], folder: Path, text: str | None = None) -> None:
        """Run a command and print its seconds. Raises: ``SystemExit`` with its output where it fails."""
        start = time.monotonic()
        done = subprocess.run(
            words,
            cwd=folder,
            env=self.variables,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=1800,
        )
        shown = (text if text is not None else words[-1]).strip().splitlines()
        print(f"{time.monotonic() - start:7.1f} s  {shown[0]}{' …' if len(shown) > 1 else ''}", flush=True)
        if done.returncode:
            raise SystemExit(f"{done.stdout}\nfailed: {' '.join(words)}")

    def shell(self, command: str, folder: Path) -> Path:
        """Run shell commands; the folder they end in."""
        here = self.folder / "here"
        for plain, more in SHORTER.items():
            command = command.replace(plain, plain + more)
        self.run(["bash", "-euo", "pipefail", "-c", f"{command}\npwd > {here}"], folder)
        return Path(here.read_text().strip())

    def python(self, code: str, folder: Path) -> None:
        """Run a Python program."""
        self.run([str(self.bin / "python"), "-"], folder, code)


class Installs:
    """The environments below those of the spans, made when first needed, in a folder of their own."""

    def __init__(self, folder: Path, dist: Path, torch: str) -> None:
        self.folder = folder
        self.versions = dict(wheel.name.split("-")[:2] for wheel in sorted(dist.glob("*.whl")))
        if not self.versions:
            raise SystemExit(f"{dist} holds no wheel: run .ci/build first")
        self.constraints, self.torch_only = folder / "constraints.txt", folder / "torch.txt"
        self.torch_only.write_text(f"torch=={torch}\n")
        wheels = [f"{wheel.name.split('-')[0].replace('_', '-')} @ {wheel.as_uri()}" for wheel in dist.glob("*.whl")]
        self.constraints.write_text("\n".join([f"torch=={torch}", *wheels]) + "\n")
        subprocess.run([sys.executable, "-m", "venv", str(folder / "torch")], check=True)
        self.torch = next((folder / "torch").glob("lib/python3*/site-packages"))
        # Older releases of pip fail where a constraint is a file and the requirement has extras.
        for wanted in (["--upgrade", "pip>=25"], [f"torch=={torch}"]):
            words = [str(folder / "torch/bin/python"), "-m", "pip", "install", "-q", "-q", "--no-compile", *wanted]
            subprocess.run(words, check=True)
        self._made: dict[str, Environment] = {}

    def environment(self, name: str, has: str = "", *, wheels: bool = True) -> Environment:
        """A fresh environment. What it ``has`` is installed in one below it, which other spans share."""
        below: tuple[Path, ...] = (self.torch,)
        if has:
            if has not in self._made:
                self._made[has] = self.environment(f"has-{len(self._made)}")
                self._made[has].shell(f'pip install "{has}"', self.folder)
            below = (self._made[has].packages, self.torch)
        return Environment(self.folder / name, below, self.constraints if wheels else self.torch_only)

    def take(self, span: Span, number: int) -> None:
        """Run a span in an environment and a folder of its own."""
        print(f"\n{span}")
        clone = span.options.get("in") == "clone"
        environment = self.environment(f"env-{number}", span.options.get("has", ""), wheels=not clone)
        place = self.folder / f"work-{number}"
        copy_checkout(place) if clone else place.mkdir()
        files = span.options.get("files")
        for one in span.steps:
            if one.kind == "file":
                (place / one.name).write_text(one.text, encoding="utf-8")
            elif one.kind == "sh":
                place = environment.shell(one.text, place)
                if files and "pip install" in one.text:
                    writer = Path(__file__).with_name(f"{files.replace('-', '_')}.py")
                    environment.python(writer.read_text(encoding="utf-8"), place)
            else:
                environment.python(one.text, place)
        environment.shell("pip check", place)
        if not clone:
            self._require_wheels(environment)
        shutil.rmtree(environment.folder)

    def take_sdists(self, dist: Path, example: Step) -> None:
        """Install every distribution from its sdist, run the README's example, then take the plugins away."""
        print("\nfrom sdists")
        environment = self.environment("sdists", wheels=False)
        place = self.folder / "sdists-work"
        place.mkdir()
        environment.shell(f"pip install {dist}/*.tar.gz", place)
        self._require_wheels(environment)
        environment.shell("python -m kdplug --version && kdplug plugins list && pip check", place)
        environment.python(example.text, place)
        plugins = " ".join(sorted(name for name in self.versions if name != "kdplug"))
        environment.shell(f"pip uninstall --yes {plugins} && kdplug plugins list", place)
        environment.python(WITHOUT_PLUGINS, place)

    def _require_wheels(self, environment: Environment) -> None:
        environment.python(FROM_WHEELS.format(versions=self.versions, folder=str(self.folder)), self.folder)


def copy_checkout(place: Path) -> None:
    """The files of the checkout that git tracks, as a clone would have them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name)


def main() -> int:
    """Run the sdists and every span, or those whose name contains a text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path, help="The folder of wheels and sdists.")
    parser.add_argument("--torch", default="2.13.0", help="The version of torch to install.")
    parser.add_argument("--only", default="", help="Run spans whose page and line contain this text.")
    given = parser.parse_args()
    found = [span for page in PAGES for span in spans(page)]
    with tempfile.TemporaryDirectory(prefix="kdplug-installs-") as folder:
        installs = Installs(Path(folder), given.dist.resolve(), given.torch)
        if given.only in "from sdists":
            (example,) = [one for one in spans(ROOT / "README.md") for one in one.steps if one.kind == "python"]
            installs.take_sdists(given.dist.resolve(), example)
        for number, span in enumerate(found):
            if given.only in str(span):
                installs.take(span, number)
    return 0


if __name__ == "__main__":
    sys.exit(main())
