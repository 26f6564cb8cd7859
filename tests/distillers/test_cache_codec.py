"""A run whose teacher's logits were kept by a codec that loses nothing is the run whose teacher was asked every time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cache_scene import Reader, Rowwise, Tokens, loader, read, run
from codec_specimen import Whole, register
from small_run import make_distiller, make_student, sgd, weights
from torch.utils.data import DataLoader

import kdplug
from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.general import GeneralDistiller
from kdplug.engine.cache import layout
from kdplug.engine.cache.report import CacheReport
from kdplug.errors import ConfigError, RunError
from kdplug.host.active import isolated
from kdplug.host.metadata import scan


@pytest.fixture(autouse=True)
def codecs():
    with isolated(scan()):
        register()
        yield


def options(tmp_path, codec="whole"):
    return {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_codec": codec}


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_codec_that_loses_nothing_changes_no_bit(tmp_path, on_disk):
    kept = options(tmp_path) if on_disk else {"teacher_cache_codec": {"name": "whole"}}
    plain = run(tmp_path / "a", Rowwise(), loader(), caching=False)
    assert torch.equal(plain, run(tmp_path / "b", Rowwise(), loader(), caching=True, training=kept))


def test_a_list_of_batches_is_coded_batch_by_batch(tmp_path):
    from small_run import make_batches

    plain = run(tmp_path / "a", Rowwise(), make_batches(5), caching=False)
    cached = run(tmp_path / "b", Rowwise(), make_batches(5), caching=True, training=options(tmp_path))
    assert torch.equal(plain, cached)


def run_tokens(folder, *, caching, left, codec="whole", adaptor=read):
    torch.manual_seed(0)
    student, tokens = Reader(3, seed=1), Tokens(left)
    training = {
        "seed": 7,
        **({"teacher_cache": str(folder / "cache"), "teacher_cache_codec": codec} if caching else {}),
    }
    distiller = make_distiller(
        folder,
        student,
        Reader(5, seed=2),
        matches=[],
        training=training,
        adaptors=(adaptor, read),
        is_caching_logits=caching,
    )
    distiller.train(sgd(student, lr=1e-3), DataLoader(tokens, 4, shuffle=True, collate_fn=tokens.collate), num_epochs=3)
    return weights(student)


@pytest.mark.parametrize("left", [False, True], ids=["padded at the end", "padded at the start"])
def test_sentences_of_unequal_lengths_meet_others_and_no_bit_changes(tmp_path, left):
    plain, cached = (run_tokens(tmp_path / str(c), caching=c, left=left) for c in (False, True))
    assert torch.equal(plain, cached)
    report = CacheReport.read(tmp_path / "True" / "cache", checks=True)
    assert report.tally.items == sum(map(len, Tokens().rows)) < report.tally.positions


def test_unequal_lengths_without_a_mask_are_refused_for_coded_logits_too(tmp_path):
    def maskless(batch, outputs):
        return {**outputs, "inputs_mask": batch["attention_mask"]}

    with pytest.raises(RunError, match="adaptor returns no logits_mask to mark the padding of its logits"):
        run_tokens(tmp_path, caching=True, left=False, adaptor=maskless)


def trained(folder, teacher, cache, **distillation):
    torch.manual_seed(0)
    student = make_student()
    config = DistillationConfig(is_caching_logits=True, **distillation)
    training = TrainingConfig(output_dir=str(folder), device="cpu", seed=7, **cache)
    distiller = GeneralDistiller(training, config, teacher, student, show_progress=False)
    distiller.train(sgd(student), loader(), 2)
    return weights(student)


def filled(tmp_path, codec="whole", teacher=None, **distillation):
    training = TrainingConfig(output_dir=str(tmp_path / "fill"), device="cpu", seed=7, **options(tmp_path, codec))
    config = DistillationConfig(is_caching_logits=True, **distillation)
    distiller = GeneralDistiller(training, config, teacher or Rowwise(), make_student(), show_progress=False)
    return distiller.fill_teacher_cache(loader())


def test_a_filled_folder_replaces_the_teacher(tmp_path):
    summary = filled(tmp_path)
    assert (summary.batches, summary.tally.items) == (6, 22)
    without = trained(tmp_path / "a", None, options(tmp_path))
    assert torch.equal(without, trained(tmp_path / "b", Rowwise(), {}))


def test_hooks_see_no_teacher_where_there_is_none(tmp_path):
    filled(tmp_path)
    seen = []
    observer = type("Seeing", (), {"run_start": lambda self, run: seen.append(run.teacher)})
    observer.step_end = observer.run_end = lambda self, *_: None
    training = TrainingConfig(output_dir=str(tmp_path), device="cpu", **options(tmp_path))
    student = make_student()
    distiller = GeneralDistiller(
        training, DistillationConfig(is_caching_logits=True), None, student, observers=[observer()], show_progress=False
    )
    distiller.train(sgd(student), loader(), 1)
    assert seen == [None]


def test_without_teacher_and_without_cache_nothing_can_be_learned(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^model_T: is missing, .*Pass a model; or set is_caching_logits: true and the teacher_cache"
    ):
        trained(tmp_path, None, {})
    with pytest.raises(RunError, match=r"^teacher_cache: there is no teacher, and .*cache is not a teacher cache"):
        trained(tmp_path, None, options(tmp_path))


def test_without_teacher_a_cache_that_is_not_complete_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "SHARD_BATCHES", 2)
    filled(tmp_path)
    (tmp_path / "cache" / "shard-00001.json").unlink()
    with pytest.raises(RunError, match="is incomplete: it holds 2 of 3 shards"):
        trained(tmp_path, None, options(tmp_path))


CHANGES = {
    "the codec": (
        lambda t: trained(t, None, options(t, "positive")),
        "the codec of stored logits: name 'local:whole' -> 'local:pos",
    ),
    "its setting": (
        lambda t: trained(t, None, options(t, {"name": "whole", "shift": 2.0})),
        r"the codec of stored logits: shift 0\.0 -> 2\.0",
    ),
    "no codec": (
        lambda t: trained(t, None, {"teacher_cache": str(t / "cache")}),
        "the codec of stored logits: .* -> None",
    ),
    "the weights": (lambda t: trained(t, Rowwise(5), options(t)), r"the teacher's weights: teacher\.inner"),
}


@pytest.mark.parametrize(("go", "words"), CHANGES.values(), ids=CHANGES)
def test_a_cache_that_was_made_otherwise_is_an_error_that_names_what_differs(tmp_path, go, words):
    filled(tmp_path)
    with pytest.raises(RunError, match=f"(?s)was built from different inputs.*{words}"):
        go(tmp_path)


def test_another_temperature_is_an_error_only_where_it_matters(tmp_path):
    filled(tmp_path, "whole", temperature=2)
    trained(tmp_path / "a", None, options(tmp_path), temperature=3)
    filled(tmp_path / "p", "positive", temperature=2)
    with pytest.raises(RunError, match=r"the temperature of stored logits: 2\.0 -> 3\.0"):
        trained(tmp_path / "b", None, options(tmp_path / "p", "positive"), temperature=3)


def test_a_temperature_for_each_item_does_not_go_with_probabilities_at_one(tmp_path):
    with pytest.raises(ConfigError, match=r"^teacher_cache_codec: positive stores teacher outputs at one temperature"):
        filled(tmp_path, "positive", temperature_scheduler=["flsw", 1, 1])
    filled(tmp_path, "whole", temperature_scheduler=["flsw", 1, 1])


def test_what_lacks_a_method_is_no_codec(tmp_path):
    kdplug.cache_codecs.register("odd")(type("Odd", (), {"shared": None}))
    with pytest.raises(
        ConfigError, match="local:odd is not a cache codec: it lacks uses_temperature, takes_factored, encode"
    ):
        filled(tmp_path, "odd")


def test_an_interrupted_capture_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "SHARD_BATCHES", 1)
    teacher = Rowwise()
    teacher.before = lambda calls: 1 / 0 if calls == 4 else None
    with pytest.raises(ZeroDivisionError):
        filled(tmp_path, "positive", teacher)
    teacher.before = lambda calls: None
    assert filled(tmp_path, "positive", teacher).batches == 2
    whole = tmp_path / "whole"
    filled(whole, "positive")
    for file in sorted((whole / "cache").glob("shard-*")):
        assert file.read_bytes() == (tmp_path / "cache" / file.name).read_bytes()


def test_a_kill_before_the_shared_part_was_written_is_mended(tmp_path):
    filled(tmp_path)
    (tmp_path / "cache" / "shared.json").unlink()
    with pytest.raises(RunError, match="is incomplete"):
        trained(tmp_path, None, options(tmp_path))
    assert filled(tmp_path).batches == 1
    assert torch.equal(trained(tmp_path / "a", None, options(tmp_path)), trained(tmp_path / "b", Rowwise(), {}))


@pytest.mark.parametrize("name", ["shard-00000.safetensors", "shared.safetensors"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-1], r"bytes, but \d+ were written"),
        (lambda content: content[:-1] + b"\x7f", "is damaged: its checksum"),
    ],
    ids=["cut short", "a byte flipped"],
)
def test_a_damaged_file_is_an_error_and_nothing_is_learned_of_it(tmp_path, name, damage, words):
    filled(tmp_path)
    file = tmp_path / "cache" / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RunError, match=rf"{name} .*{words}"):
        trained(tmp_path, None, options(tmp_path))


@pytest.mark.parametrize("at", ["shard-00001.safetensors", "shard-00001.json", "shared.safetensors"])
def test_a_disk_that_is_full_ends_the_capture_and_the_next_one_goes_on(tmp_path, monkeypatch, at):
    monkeypatch.setattr(layout, "SHARD_BATCHES", 2)
    from kdplug.engine.cache import folder as cache_folder

    replace = cache_folder._replace

    def full(target, content):
        if target.name == at:
            target.with_name(f".{at}.tmp").write_bytes(content[:3])
            raise OSError(28, "No space left on device")
        replace(target, content)

    monkeypatch.setattr(cache_folder, "_replace", full)
    with pytest.raises(RunError, match=r"cannot write the teacher cache .*: No space left on device"):
        filled(tmp_path)
    monkeypatch.setattr(cache_folder, "_replace", replace)
    filled(tmp_path)
    assert torch.equal(trained(tmp_path / "a", None, options(tmp_path)), trained(tmp_path / "b", Rowwise(), {}))


def test_two_heads_have_each_their_mask(tmp_path):
    def heads(batch, outputs):
        mask = batch["attention_mask"]
        return {
            "logits": [outputs["logits"], 2 * outputs["logits"]],
            "logits_mask": [mask, mask * (mask.cumsum(1) > 1)],
        }

    def go(caching):
        torch.manual_seed(0)
        student, tokens = Reader(3, seed=1), Tokens()
        training = {"seed": 7, **(options(tmp_path) if caching else {})}
        distiller = make_distiller(
            tmp_path / str(caching),
            student,
            Reader(5, seed=2),
            matches=[],
            training=training,
            adaptors=(heads, heads),
            is_caching_logits=caching,
            hard_label_weight=0,
        )
        batches = DataLoader(tokens, 4, shuffle=True, collate_fn=tokens.collate)
        distiller.train(sgd(student, lr=1e-3), batches, num_epochs=2)
        return weights(student)

    assert torch.equal(go(False), go(True))


def test_the_summary_counts_bytes_by_item(tmp_path):
    summary = filled(tmp_path, Whole.__name__.lower())
    assert summary.bytes_per_item == 3 * 8 + 8  # without the 8 bytes that all items share
    assert "each (32 B per item)" in str(summary)


def next_token(batch, outputs):
    """Logits beside the token that they are about, one position fewer than there are tokens."""
    mask = batch["attention_mask"]
    return {"logits": outputs["logits"][:, :-1], "logits_mask": mask[:, 1:] * mask[:, :-1]}


@pytest.mark.parametrize("codec", ["whole", None])
@pytest.mark.parametrize("left", [False, True], ids=["padded at the end", "padded at the start"])
def test_logits_that_are_shifted_by_a_token_find_their_place(tmp_path, left, codec):
    def go(caching):
        torch.manual_seed(0)
        student, tokens = Reader(3, seed=1), Tokens(left)
        cache = {"teacher_cache": str(tmp_path / "cache"), "teacher_cache_codec": codec} if caching else {}
        distiller = make_distiller(
            tmp_path / str(caching),
            student,
            Reader(5, seed=2),
            matches=[],
            training={"seed": 7, **cache},
            adaptors=(next_token, next_token),
            is_caching_logits=caching,
            hard_label_weight=0,
        )
        batches = DataLoader(tokens, 4, shuffle=True, collate_fn=tokens.collate)
        distiller.train(sgd(student, lr=1e-3), batches, num_epochs=2)
        return weights(student)

    assert torch.equal(go(False), go(True))


KILLED = """
import os, sys
sys.path[:0] = {path!r}
from pathlib import Path
import test_cache_codec as scene
from cache_scene import Rowwise
from kdplug.engine.cache import layout
layout.SHARD_BATCHES = 1
scene.register()
teacher = Rowwise()
teacher.before = lambda calls: os.kill(os.getpid(), 9) if calls == 4 else None
scene.filled(Path(sys.argv[1]), "positive", teacher)
"""


def test_a_kill_during_the_capture_loses_one_shard_at_most(tmp_path):
    code = KILLED.format(path=[str(Path(__file__).parent), str(Path(__file__).parents[1])])
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, env=os.environ).returncode == -9
    (tmp_path / "cache" / ".shard-00004.safetensors.tmp").write_bytes(b"half of one")
    assert filled(tmp_path, "positive").batches == 2
    assert CacheReport.read(tmp_path / "cache", checks=True).is_complete
