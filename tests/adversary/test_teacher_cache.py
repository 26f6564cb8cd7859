"""A teacher cache that was damaged, edited or mixed with another one is refused by one clear error, or trains the same bits."""

from __future__ import annotations

import os
import resource
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_attack import ATTACKS, Random, files, forge, lose, replace_kind
from cache_scene import Reader, Rowwise, Tokens, data, read
from small_run import make_student
from torch import nn
from torch.utils.data import DataLoader

import kdplug
from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.general import GeneralDistiller
from kdplug.engine.cache import layout
from kdplug.engine.cache.folder import CacheFolder
from kdplug.engine.cache.report import CacheReport
from kdplug.engine.cache.session import CacheSession
from kdplug.engine.example_ids import ExampleIds
from kdplug.engine.hashing import digest
from kdplug.engine.parallel.process import process
from kdplug.errors import KdplugError, RunError
from kdplug.recipes.cache_provenance import CacheProvenance, read_provenance
from kdplug.recipes.measure import Figures


class Factored(Reader):
    """A teacher that returns its logits as hidden state and head."""

    def forward(self, input_ids, attention_mask):
        return {"logits": kdplug.FactoredLogits(self.table[input_ids], self.head)}


def read_factored(batch, outputs):
    return {**outputs, "logits_mask": batch["attention_mask"]}


def both_layers(batch, outputs):
    return {"logits": outputs["logits"], "hidden": outputs["hidden"]}


HIDDEN = [{"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "mmd", "weight": 0.1}]


@dataclass(frozen=True)
class Scene:
    """A teacher, the codec and dtype in which its outputs are stored, and the matches that decide which are."""

    teacher: Callable[[int], nn.Module]
    codec: Any = None
    dtype: str | None = None
    adaptor: Any = read
    loss: str = "ce"
    matches: tuple[dict[str, Any], ...] = ()
    data: str = "tokens"

    def loader(self) -> DataLoader:
        if self.data == "rows":
            return DataLoader(data(14), batch_size=4)
        tokens = Tokens()
        return DataLoader(torch.utils.data.Subset(tokens, range(14)), batch_size=4, collate_fn=tokens.collate)

    def distiller(self, folder: Path, seed: int | None) -> GeneralDistiller:
        """``seed`` is the teacher's; without one, its outputs come from ``folder`` alone."""
        training = TrainingConfig(
            output_dir=str(folder.parent / "run"),
            device="cpu",
            teacher_cache=str(folder),
            teacher_cache_codec=self.codec,
            teacher_cache_dtype=self.dtype,
        )
        config = DistillationConfig(
            temperature=2, is_caching_logits=True, kd_loss_type=self.loss, intermediate_matches=list(self.matches)
        )
        teacher = None if seed is None else self.teacher(seed)
        return GeneralDistiller(training, config, teacher, make_student(), self.adaptor, show_progress=False)

    def fill(self, folder: Path, seed: int = 2) -> Path:
        """A cache in several shards, with what ``kdplug cache`` adds to it."""
        self.distiller(folder, seed).fill_teacher_cache(self.loader())
        CacheProvenance("accuracy", {"accuracy": 0.5 + seed / 100}, Figures(10, 0.1, 40, 2.0)).write(folder)
        return folder

    def recalled(self, folder: Path, seed: int | None = None) -> int:
        """A digest of everything that a run reads of the cache in ``folder``."""
        made = self.distiller(folder, seed)
        with process("cpu", None) as accelerator:
            session = session_of(made, self.loader())
            session.open(accelerator)
            session.fill(made.objective, shown=False)
            found = [session.postprocess(keyed)["teacher_cache"].outputs() for keyed in session.dataloader]
        training = {"teacher_cache": str(folder), "num_epochs": 1}
        recipe = {"task": "digits", "distillation": {"kd_loss_type": "ce"}, "training": training}
        return digest([found, read_provenance(kdplug.Recipe.from_dict(recipe))])


SCENES = {
    "logits and a layer as they are": Scene(Rowwise, data="rows", adaptor=both_layers, matches=HIDDEN),
    "narrowed, lengths that differ": Scene(lambda seed: Reader(5, seed), dtype="float16", matches=HIDDEN),
    "dense": Scene(lambda seed: Reader(5, seed), codec={"name": "dense", "dtype": "float32"}, matches=HIDDEN),
    "topk_tail": Scene(lambda seed: Reader(5, seed), codec={"name": "topk_tail", "k": 2, "bits": 8}, loss="kl"),
    "sampled": Scene(Rowwise, data="rows", adaptor=None, codec={"name": "sampled", "rounds": 5}, loss="sampled"),
    "hidden": Scene(lambda seed: Factored(5, seed), adaptor=read_factored, codec={"name": "hidden"}),
}


@dataclass(frozen=True)
class Kept:
    """An intact cache, another teacher's cache of the same data, and what is recalled of the first."""

    scene: Scene
    intact: Path
    other: Path
    recalled: int


def session_of(made, loader) -> CacheSession:
    ids = ExampleIds(made.objective, loader, None)
    return CacheSession(made.teacher_cache, made._teacher, loader, None, {}, example_ids=ids)


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Iterator[dict[str, Kept]]:
    before, layout.SHARD_BATCHES = layout.SHARD_BATCHES, 2
    try:
        found = {}
        for name, scene in SCENES.items():
            folder = tmp_path_factory.mktemp("kept")
            intact, other = scene.fill(folder / "intact"), scene.fill(folder / "other", seed=5)
            found[name] = Kept(scene, intact, other, scene.recalled(intact))
        yield found
    finally:
        layout.SHARD_BATCHES = before


def outcome(kept: Kept, folder: Path, seed: int | None = None) -> str:
    """``refused``, or what happened instead. ``seed`` is that of the teacher, where it is at hand."""
    try:
        CacheReport.read(folder, checks=True).to_data()
    except KdplugError:
        pass
    except Exception as error:
        return f"cache show: {type(error).__name__}: {error}"
    try:
        found = kept.scene.recalled(folder, seed)
    except KdplugError as error:
        return "refused" if str(error).strip() else "an error without a word"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "unnoticed" if found == kept.recalled else "other outputs"


def attacked(kept: dict[str, Kept], tmp_path: Path, attempts: Any, seed: int, count: int) -> Counter[tuple[str, str]]:
    """Attack copies of all caches in turn; how each attack ended that was not held.

    Each is to be refused. Where the teacher is at hand, it may instead be run again for parts that are gone.
    """
    rng, found = Random(seed), Counter[tuple[str, str]]()
    names = list(kept)
    for number in range(count):
        cache, attack, teacher = kept[names[number % len(names)]], rng.choice(ATTACKS), rng.choice([None, None, 2])
        folder = tmp_path / str(number)
        shutil.copytree(cache.intact, folder)
        while not attack(rng, folder, cache.other):
            attack = rng.choice(ATTACKS)
        ended = outcome(cache, folder, teacher)
        held = ended == "refused" or (ended == "unnoticed" and teacher is not None and attack in (lose, replace_kind))
        attempts.record(held)
        if not held:
            found[attack.__name__, ended] += 1
        shutil.rmtree(folder)
    return found


@pytest.mark.attack("a teacher cache is damaged, edited or mixed")
def test_a_hundred_attacks_on_a_cache_are_refused(kept, tmp_path, attempts):
    assert not attacked(kept, tmp_path, attempts, seed=0, count=100)


@pytest.mark.slow
@pytest.mark.attack("a teacher cache is damaged, edited or mixed")
def test_a_thousand_attacks_on_a_cache_are_refused(kept, tmp_path, attempts):
    assert not attacked(kept, tmp_path, attempts, seed=1, count=1000)


def forged(kept: dict[str, Kept], tmp_path: Path, attempts: Any, seed: int, count: int) -> Counter[str]:
    """What forged caches end in that is neither an error of kdplug's nor outputs that a run can read."""
    rng, found, before = Random(seed), Counter[str](), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        cache, folder, done = list(kept.values())[number % len(kept)], tmp_path / str(number), False
        while not done:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(cache.intact, folder)
            done = forge(rng, folder, cache.other)
        ended = outcome(cache, folder)
        held = ended in ("refused", "unnoticed", "other outputs")
        attempts.record(held)
        if not held:
            found[ended] += 1
        shutil.rmtree(folder)
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 1 << 20:
        found["more than a gigabyte was allocated"] += 1
    return found


@pytest.mark.attack("a teacher cache is forged, digests included: no traceback, nothing of a forged size is allocated")
def test_a_forged_cache_is_read_or_refused(kept, tmp_path, attempts):
    assert not forged(kept, tmp_path, attempts, seed=0, count=60)


@pytest.mark.slow
@pytest.mark.attack("a teacher cache is forged, digests included: no traceback, nothing of a forged size is allocated")
def test_many_forged_caches_are_read_or_refused(kept, tmp_path, attempts):
    assert not forged(kept, tmp_path, attempts, seed=1, count=600)


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.attack("the whole cache of another teacher takes the place of a cache")
def test_the_whole_cache_of_another_teacher_is_refused(kept, name):
    with pytest.raises(RunError, match=r"was built from different inputs.*\n.*the teacher's weights"):
        kept[name].scene.recalled(kept[name].other, seed=2)


def doubled(module, args, output):
    return {**output, "logits": 2 * output["logits"]}


def halved_input(module, args):
    return (args[0] / 2,)


HOOKS = {
    "hook": lambda teacher: teacher.register_forward_hook(doubled),
    "pre-hook": lambda teacher: teacher.register_forward_pre_hook(halved_input),
    "hook inside": lambda teacher: teacher.act.register_forward_hook(lambda module, args, output: output + 1),
    "hook on all modules": lambda teacher: nn.modules.module.register_module_forward_hook(
        lambda module, args, output: 2 * output if module is teacher.act else None
    ),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
@pytest.mark.parametrize("first", [True, False], ids=["when the cache is built", "when it is used"])
@pytest.mark.attack("a forward hook changes what the teacher returns, when the cache is built or when it is used")
def test_a_hook_on_the_teacher_is_noticed(tmp_path, register, first):
    scene, teacher = SCENES["logits and a layer as they are"], Rowwise()
    scene = replace(scene, teacher=lambda seed: teacher, data="rows")
    handle = register(teacher) if first else None
    try:
        scene.distiller(tmp_path / "cache", 0).fill_teacher_cache(scene.loader())
    finally:
        _ = handle and handle.remove()
    handle = None if first else register(teacher)
    try:
        with pytest.raises(
            RunError, match=r"the hooks on the teacher: teacher\..*, forward (pre-)?hook .* \((new|removed)\)"
        ):
            scene.recalled(tmp_path / "cache", 0)
    finally:
        _ = handle and handle.remove()
    if not first:
        scene.recalled(tmp_path / "cache", 0)


@pytest.mark.attack("kdplug's own hooks, which read features for a match, are taken for hooks that change the teacher")
def test_hooks_that_read_features_make_no_other_teacher(tmp_path):
    match = {"layer_T": "act", "layer_S": "inner", "loss": "mmd"}
    scene = replace(SCENES["logits and a layer as they are"], matches=(match,))
    made = scene.distiller(tmp_path / "cache", 2)
    with made._teacher.capturing(["act"]):
        made.fill_teacher_cache(scene.loader())
    with made._teacher.capturing(["act"]):
        assert made.fill_teacher_cache(scene.loader()).batches == 0


@pytest.mark.attack("several threads read one cache while another one is put into its place")
def test_readers_see_one_cache_while_another_one_takes_its_place(kept, tmp_path, attempts):
    cache = kept["dense"]
    folder = tmp_path / "cache"
    shutil.copytree(cache.intact, folder)
    ends: list[str] = []

    def read() -> None:
        opened = CacheFolder(folder)
        for _ in range(40):
            try:
                manifest = opened.manifest()
                shards = [opened.read(place, 0) for place in range(manifest.extent.shards)]
                ends.append(str(digest([shard.tensors() for shard in shards])))
            except KdplugError:
                ends.append("refused")
            except Exception as error:
                ends.append(repr(error))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    sources = (cache.other, cache.intact)
    while any(reader.is_alive() for reader in readers):
        for file in files(sources[0]):
            Path(shutil.copy(file, tmp_path / "moved")).replace(folder / file.name)
        sources = sources[::-1]
    whole = {str(digest([shard.tensors() for shard in shards_of(one)])) for one in (cache.intact, cache.other)}
    for end in ends:
        attempts.record(end == "refused" or end in whole)
    assert set(ends) <= {"refused", *whole}


def shards_of(folder: Path) -> list[Any]:
    opened = CacheFolder(folder)
    manifest = opened.manifest()
    assert manifest is not None
    return [opened.read(place, 0) for place in range(manifest.extent.shards)]


@pytest.mark.attack("a shard is overwritten in place while a run uses it")
def test_a_shard_that_is_overwritten_during_a_run_ends_it(kept, tmp_path):
    cache, folder = kept["topk_tail"], tmp_path / "cache"
    shutil.copytree(cache.intact, folder)
    made = cache.scene.distiller(folder, None)
    with process("cpu", None) as accelerator:
        session = session_of(made, cache.scene.loader())
        session.open(accelerator)
        first, second, *_ = [session.postprocess(keyed)["teacher_cache"] for keyed in session.dataloader]
        first.outputs()
        other = (cache.other / "shard-00000.safetensors").read_bytes()
        with (folder / "shard-00000.safetensors").open("r+b") as stream:
            stream.write(other[: len(stream.read())])
        os.utime(folder / "shard-00000.safetensors")
        with pytest.raises(RunError, match=r"shard-00000\.safetensors was changed while this run was reading it"):
            second.outputs()
