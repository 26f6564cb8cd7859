"""Count modules with one importer, and the source files whose functions four runs call.

    python tests/benchmarks/files_run.py [--list RUN]

The runs are one objective call, ``GeneralDistiller.train`` of 4 steps, the same from a disk cache with a codec, and
``kdplug run examples/digits.yaml``. A file counts when a function defined in it is called during the run; class bodies and
module bodies do not count.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    "kdplug": ROOT,
    **{f"kdplug_{name}": ROOT / f"plugins/kdplug-{name}/src" for name in ("presets", "logits", "tasks")},
}


@contextmanager
def called_files() -> Iterator[set[str]]:
    """Collect the source files of this repository whose functions are called."""
    files: set[str] = set()
    found: set[CodeType] = set()
    folders = tuple(str(folder / package) + "/" for package, folder in SOURCES.items())

    def note(code: CodeType) -> None:
        if (
            code not in found and code.co_flags & 0x2 and code.co_filename.startswith(folders)
        ):  # CO_NEWLOCALS: a function
            found.add(code)
            files.add(str(Path(code.co_filename).relative_to(ROOT)))

    def profile(frame: object, event: str, _: object) -> None:
        if event == "call":
            note(frame.f_code)  # type: ignore[attr-defined]

    sys.setprofile(profile)
    try:
        yield files
    finally:
        sys.setprofile(None)


def objective_call(_: Path) -> Callable[[], object]:
    """One call of an objective with a KD term and a hidden-state match."""
    import torch

    import kdplug

    torch.manual_seed(0)
    config = kdplug.DistillationConfig(
        kd_loss_type="ce",
        intermediate_matches=[{"feature": "hidden", "layer_T": 0, "layer_S": 0, "loss": "hidden_mse", "weight": 1.0}],
    )
    objective = kdplug.Objective(config)
    outputs = [
        {"logits": torch.randn(4, 3, requires_grad=True), "hidden": [torch.randn(4, 5, 6, requires_grad=True)]}
        for _ in "st"
    ]
    return lambda: objective(*outputs)


def general_distiller(folder: Path) -> Callable[[], object]:
    """``GeneralDistiller.train`` of 4 steps."""
    return _training(folder, cached=False)


def cached_distiller(folder: Path) -> Callable[[], object]:
    """The same with a disk cache of top-k logits."""
    return _training(folder, cached=True)


def _training(folder: Path, cached: bool) -> Callable[[], object]:
    import torch

    import kdplug

    torch.manual_seed(0)

    def adaptor(batch: object, outputs: dict[str, object]) -> dict[str, object]:
        return outputs

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = torch.nn.Linear(8, 6), torch.nn.Linear(6, 32)

        def forward(self, x: torch.Tensor) -> dict[str, object]:
            hidden = self.hidden(x)
            return {"logits": self.head(hidden), "hidden": [hidden.unsqueeze(1)]}

    loader = torch.utils.data.DataLoader(torch.utils.data.StackDataset(x=torch.randn(16, 8)), batch_size=4)
    student = Model()
    codec = {"name": "topk_tail", "k": 8} if cached else None
    distiller = kdplug.GeneralDistiller(
        kdplug.TrainingConfig(
            output_dir=str(folder / "out"),
            ckpt_frequency=1,
            teacher_cache=str(folder / "cache") if cached else None,
            teacher_cache_codec=codec,
        ),
        kdplug.DistillationConfig(
            is_caching_logits=cached,
            kd_loss_type="topk" if cached else "ce",
            intermediate_matches=[
                {"feature": "hidden", "layer_T": 0, "layer_S": 0, "loss": "hidden_mse", "weight": 1.0}
            ],
        ),
        Model(),
        student,
        adaptor,
        adaptor,
        show_progress=False,
    )
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    return lambda: distiller.train(optimizer, loader, num_epochs=1)


def digits(folder: Path) -> Callable[[], object]:
    """``kdplug run examples/digits.yaml``."""
    from kdplug.cli.app import main

    def run() -> None:
        sys.argv = ["kdplug", "run", str(ROOT / "examples/digits.yaml"), "--set", f"output_dir={folder / 'run'}"]
        main()

    return run


RUNS = {
    "objective": objective_call,
    "train": general_distiller,
    "train from a cache": cached_distiller,
    "digits": digits,
}


def importers() -> tuple[Counter[str], int]:
    """Modules imported by exactly one other module, counted per package, and the number of all modules."""
    modules = {
        ".".join(path.relative_to(folder).with_suffix("").parts): path
        for package, folder in SOURCES.items()
        for path in (folder / package).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    used: dict[str, set[str]] = defaultdict(set)
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                for target in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                    if target in modules and target != name:
                        used[target].add(name)
    single = [name for name in modules if len(used[name]) == 1]
    return Counter(
        ".".join(name.split(".")[:2]) if name.startswith("kdplug.") else name.split(".")[0] for name in single
    ), len(modules)


def main() -> int:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", choices=RUNS, help="also print the files of this run")
    parser.add_argument("--only", choices=RUNS, nargs="*", default=list(RUNS))
    given = parser.parse_args()
    single, modules = importers()
    print(f"{modules} modules, {sum(single.values())} with a single importer: {dict(single.most_common())}")
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            run = RUNS[name](Path(folder))
            with called_files() as files, suppress(SystemExit):
                run()
        print(f"{name}: {len(files)} files")
        if given.list == name:
            print("\n".join(f"    {file}" for file in sorted(files)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
