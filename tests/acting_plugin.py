"""A plugin whose hooks change the run, keep state and draw random numbers; installed in a folder on the path."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path

from fake_install import write_distribution

from kdplug.host.active import isolated
from kdplug.host.metadata import scan

NAME = "kdplug-averages"

SOURCE = '''
"""Noise before each step, and a running mean of the weights, to which the student is pulled after it."""
import torch


class Average:
    def __init__(self):
        self.count, self.mean, self.calls = 0, {}, []

    def kdplug_run_start(self, run):
        self.mean = {name: torch.zeros_like(one) for name, one in run.model.named_parameters()}
        torch.rand(3)

    def kdplug_step_start(self, run):
        self.calls.append(("start", run.step))
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.01)

    def kdplug_step_end(self, run, step):
        self.calls.append(("end", step))
        self.count += 1
        with torch.no_grad():
            for name, parameter in run.model.named_parameters():
                self.mean[name] += (parameter - self.mean[name]) / self.count
                parameter.lerp_(self.mean[name], 0.1)
        for group in run.optimizer.param_groups:
            group["lr"] *= 0.99

    def kdplug_evaluated(self, run, figures):
        self.calls.append(("evaluated", run.step, dict(figures)))
        if figures.get("enough"):
            run.stop("enough")

    def state_dict(self):
        return {"count": self.count, "mean": self.mean}

    def load_state_dict(self, state):
        self.count, self.mean = state["count"], dict(state["mean"])


average = Average()
'''


def install(folder: Path, source: str = SOURCE, name: str = NAME, target: str = ":average") -> None:
    """Install the plugin into ``folder``, and put that on the path."""
    module = name.replace("-", "_")
    write_distribution(folder, name, offers={"plugins": {"hooks": module + target}}, files={f"{module}.py": source})
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@contextmanager
def installed():
    """All plugins of this environment, those of folders that were put on the path since included."""
    with isolated(scan()) as host:
        yield host
