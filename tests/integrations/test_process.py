"""Two processes train what one does on the same global batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bert_run import examples, make_trainer, unlabelled, weights
from loop_run import lightning_trainer, make_module
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import BertForSequenceClassification

TESTS = Path(__file__).parents[1]
SCRIPT = """
import sys
import torch
from bert_run import config, examples, make_teacher, make_trainer, unlabelled, weights
from kdplug.errors import RunError
from leave_group import leave_group
from loop_run import lightning_trainer, make_module
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

folder = sys.argv[1]
for parts in (1, 2):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": parts, "max_steps": 3}
    saving = {"save_strategy": "steps", "save_steps": 3, "ddp_backend": "gloo"}
    # the second process has no label at all
    trainer = make_trainer(f"{folder}/{parts}", rows=unlabelled(examples(24), 2, 3), kd={"eval_dataset": examples(8, seed=5)}, **options, **saving)
    trainer.train()
    assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
    metrics = trainer.evaluate()
    record = {"student": weights(trainer.model), "objective": weights(trainer.objective), "log": trainer.state.log_history,
              "metrics": metrics}
    torch.save(record, f"{folder}/{parts}-{trainer.args.process_index}.pt")

module, rows = make_module(), unlabelled(examples(24), 1, 3)
shares = DistributedSampler(rows, shuffle=False)
run = lightning_trainer(folder, max_steps=3, devices=2, strategy="ddp", use_distributed_sampler=False)
run.fit(module, DataLoader(rows, batch_size=2, sampler=shares))
record = {"student": weights(module.student), "objective": weights(module.objective)}
torch.save(record, f"{folder}/lightning-{run.global_rank}.pt")

other, said = int(torch.distributed.get_rank() == 1), {}
for name, options in {"teacher": {"teacher": make_teacher(seed=2 + other)}, "data": {"rows": examples(24, seed=3 + other)},
                      "config": {"distill_config": config(temperature=2 + other)}}.items():
    try:
        make_trainer(f"{folder}/unlike", ddp_backend="gloo", **options).train()
    except RunError as error:
        said[name] = str(error)
try:
    module = make_module(distill_config=config(temperature=2 + other))
    run = lightning_trainer(folder, max_steps=3, devices=2, strategy="ddp")
    run.fit(module, DataLoader(rows, batch_size=2))
except RunError as error:
    said["lightning"] = str(error)
torch.save(said, f"{folder}/unlike-{other}.pt")
leave_group()
"""


FSDP = """
import sys
import fsdp_on_cpu
fsdp_on_cpu.enable()
import torch
from bert_run import examples, make_trainer, weights
from leave_group import leave_group

folder = sys.argv[1]
fsdp = {"fsdp_version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"], "reshard_after_forward": True}
options = {"max_steps": 4, "optim": "adamw_torch", "learning_rate": 0.01, "save_strategy": "steps", "save_steps": 2}
options |= {"fsdp": True, "fsdp_config": {**fsdp, "state_dict_type": "FULL_STATE_DICT"}, "ddp_backend": "gloo"}
options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
trainer = make_trainer(folder, kd={"eval_dataset": examples(8, seed=5)}, **options)
trainer.train()
assert trainer.evaluate()["eval_kd_loss"] > 0
trainer.save_model(f"{folder}/whole")
torch.distributed.barrier()
rest = make_trainer(folder, **options)
rest.train(resume_from_checkpoint=f"{folder}/checkpoint-2")
rest.save_model(f"{folder}/resumed")
leave_group()
"""


def launch(folder, script):
    """Run ``script`` in two gloo processes."""
    (folder / "script.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [*command, "script.py", str(folder)],
        cwd=folder,
        env=environment,
        timeout=180,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """A folder with what each of two gloo processes had at the end."""
    return launch(tmp_path_factory.mktemp("two"), SCRIPT)


@pytest.mark.parametrize("parts", [1, 2])
def test_two_processes_with_unequal_masks_train_what_one_does(two_processes, tmp_path, parts):
    rows = unlabelled(examples(24), 2, 3)
    alone = make_trainer(tmp_path, rows=rows, per_device_train_batch_size=4 * parts)
    alone.train()
    for rank in (0, 1):
        record = torch.load(two_processes / f"{parts}-{rank}.pt", weights_only=False)
        torch.testing.assert_close(record["student"], weights(alone.model), rtol=0, atol=1e-12)
        torch.testing.assert_close(record["objective"], weights(alone.objective), rtol=0, atol=1e-12)
        for mine, theirs in zip(record["log"][:3], alone.state.log_history, strict=False):
            shared = mine.keys() - {"epoch"}
            assert {key: mine[key] for key in shared} == pytest.approx({key: theirs[key] for key in shared}, rel=1e-5)


def test_two_processes_under_lightning_train_what_one_does(two_processes, tmp_path):
    alone = make_module()
    lightning_trainer(tmp_path, max_steps=3).fit(alone, DataLoader(unlabelled(examples(24), 1, 3), batch_size=4))
    for rank in (0, 1):
        record = torch.load(two_processes / f"lightning-{rank}.pt", weights_only=True)
        torch.testing.assert_close(record["student"], weights(alone.student), rtol=0, atol=1e-12)
        torch.testing.assert_close(record["objective"], weights(alone.objective), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("what", "field"),
    [
        ("teacher", "rank 1: teacher.0.weights: '"),
        ("data", "rank 1: data.content (24 examples compared): '"),
        ("config", "rank 1: distillation.temperature: 3.0, on rank 0 2.0"),
        ("lightning", "rank 1: distillation.temperature: 3.0, on rank 0 2.0"),
    ],
)
def test_processes_that_differ_raise_the_same_error(two_processes, what, field):
    said = [torch.load(two_processes / f"unlike-{rank}.pt", weights_only=True)[what] for rank in (0, 1)]
    assert said[0] == said[1]
    assert field in said[0]


def test_a_checkpoint_of_two_processes_holds_the_objective_apart(two_processes):
    folder = two_processes / "2/checkpoint-3"
    record = torch.load(two_processes / "2-0.pt", weights_only=False)
    assert not any("objective" in name for name in load_file(folder / "model.safetensors"))
    projection = load_file(folder / "objective.safetensors")
    assert torch.equal(
        torch.cat([value.flatten() for value in projection.values()]).sort()[0], record["objective"].sort()[0]
    )


@pytest.mark.slow
def test_fsdp_trains_saves_and_resumes_what_one_process_does(tmp_path):
    folder = launch(tmp_path, FSDP)
    alone = make_trainer(tmp_path, per_device_train_batch_size=8, max_steps=4, optim="adamw_torch", learning_rate=0.01)
    alone.train()
    for found in ("whole", "resumed"):
        student = BertForSequenceClassification.from_pretrained(folder / found)
        torch.testing.assert_close(weights(student), weights(alone.model), rtol=0, atol=1e-8)
        saved = load_file(folder / found / "objective.safetensors")
        for name, value in alone.objective.state_dict().items():
            torch.testing.assert_close(saved[name], value, rtol=0, atol=1e-8)
