from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import sys
from kdplug.config.distillation import DistillationConfig
from kdplug.config.recipe import Recipe
from kdplug.config.training import TrainingConfig
from kdplug.host.active import isolated
from kdplug.host.metadata import Distribution, EntryPoint

points = (
    EntryPoint("kdplug.losses", "ce", "nowhere:ce"),
    EntryPoint("kdplug.losses", "hidden_mse", "nowhere:hidden_mse"),
    EntryPoint("kdplug.projections", "linear", "nowhere:linear"),
)
tasks = Distribution("kdplug-tasks", "0.1.0", (EntryPoint("kdplug.tasks", "digits", "nowhere:Digits"),))
match = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "proj": ["linear", 3, 5]}
with isolated([Distribution("kdplug-presets", "0.1.0", points), tasks]):
    config = DistillationConfig(intermediate_matches=[match])
    assert DistillationConfig.from_yaml(config.to_yaml()) == config
    Recipe(task="digits", distillation=config, training={"num_epochs": 1})
    TrainingConfig()
assert "torch" not in sys.modules
"""


def test_reading_a_config_imports_no_torch_and_no_plugin():
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
