"""A loss of another package costs a step what the loss computes: the process state is not read around it."""

from __future__ import annotations

import torch
from fake_install import FakeSite
from small_run import make_batches, make_distiller, make_student, sgd

from kdplug.host.isolation import plugin_code

SOURCE = """
def third(student_logits, teacher_logits, temperature):
    "The squared difference."
    return ((student_logits - teacher_logits) / temperature).square().mean()
"""


class Snapshots:
    """Counts how often the process state is read, and notes the count after each step."""

    def __init__(self) -> None:
        self.count = 0
        self.after_steps: list[int] = []

    def run_start(self, run):
        pass

    def step_end(self, run, step, report):
        self.after_steps.append(self.count)

    def run_end(self, run, error):
        pass


def test_no_step_reads_the_process_state(fake_site: FakeSite, tmp_path, monkeypatch):
    fake_site.add("kdplug-third", losses={"third": "kdplug_third:third"}, files={"kdplug_third.py": SOURCE})
    seen, snapshot = Snapshots(), plugin_code.Snapshot

    def counting(*arguments):
        seen.count += 1
        return snapshot(*arguments)

    monkeypatch.setattr(plugin_code, "Snapshot", counting)
    with fake_site.host():
        student = make_student()
        made = make_distiller(tmp_path, student, kd_loss_type="third", options={"observers": [seen]})
        built = seen.count
        made.train(sgd(student), make_batches(5), num_steps=5)
    assert built > 0
    assert len(set(seen.after_steps)) == 1
    assert torch.isfinite(student.head.weight).all()
