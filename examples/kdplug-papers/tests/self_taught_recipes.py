"""Recipes without a teacher of their own: a virtual one, deeper heads, a moving average, a mixed batch, a served model."""

from __future__ import annotations

import atexit
import json
import os
import threading
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from kdplug_papers.mixing import Mixup
from kdplug_papers.served import HttpTeacher
from recipe import SHORT, Recipe
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, TensorDataset

CLASSES, WIDTH = 3, 6


class Net(nn.Module):
    """Three blocks, each with a head of its own; head 0 is the deepest. Inputs ``[B, 6]``."""

    def __init__(self, seed: int, heads: int = 1, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.blocks = nn.ModuleList(nn.Linear(WIDTH if not place else width, width) for place in range(3))
            self.heads = nn.ModuleList(nn.Linear(width, CLASSES) for _ in range(heads))

    def forward(self, inputs: Tensor) -> dict[str, list[Tensor]]:
        """Return the logits of each head, the deepest first, and the hidden states."""
        hidden, value = [], inputs
        for block in self.blocks:
            value = torch.tanh(block(value))
            hidden.append(value)
        return {
            "logits": [head(one) for head, one in zip(self.heads, reversed(hidden), strict=False)],
            "hidden": hidden,
        }


def data() -> Dataset[tuple[Tensor, ...]]:
    """Return inputs whose largest of three sums is the label."""
    inputs = torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(3))
    return TensorDataset(inputs, inputs.reshape(24, CLASSES, -1).sum(-1).argmax(-1))


def adaptor(batch: list[Tensor], outputs: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """Add labels, and the cross-entropy of each head."""
    labels = batch[1]
    losses = [cross_entropy(one, labels, reduction="none") for one in outputs["logits"]]
    return {**outputs, "labels": [labels] * len(losses), "losses": losses}


def error(student: nn.Module, _: object) -> float:
    """Return the cross-entropy of the deepest head with the labels."""
    inputs, labels = data()[:]  # type: ignore[index]
    with torch.no_grad():
        return cross_entropy(student(inputs)["logits"][0], labels).item()


def apart(student: nn.Module, teacher: nn.Module) -> float:
    """Return the mean squared difference of the deepest heads' probabilities."""
    inputs, _ = data()[:]  # type: ignore[index]
    with torch.no_grad():
        own, theirs = (model(inputs)["logits"][0].softmax(-1) for model in (student, teacher))
        return (own - theirs).square().mean().item()


def sure(seed: int) -> Net:
    """Return a network with distinct probabilities."""
    made = Net(seed)
    with torch.no_grad():
        made.heads[0].weight.mul_(5)
    return made


class Answers(BaseHTTPRequestHandler):
    """Answers with the logits of a network."""

    def do_POST(self) -> None:
        """Answer one batch."""
        inputs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
        with torch.no_grad():
            rows = sure(9)(torch.tensor(inputs))["logits"][0].tolist()
        body = json.dumps({"logits": rows}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@cache
def _server(_process: int) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    atexit.register(server.server_close)
    return server


def served() -> HttpTeacher:
    """Return a teacher behind a server of this process."""
    return HttpTeacher(url=f"http://127.0.0.1:{_server(os.getpid()).server_port}", model="net-9")


def from_server(student: nn.Module, teacher: HttpTeacher) -> float:
    """Return the mean squared difference from the probabilities that the server gives."""
    inputs, _ = data()[:]  # type: ignore[index]
    with torch.no_grad():
        return (student(inputs)["logits"][0].softmax(-1) - teacher(inputs)["logits"].softmax(-1)).square().mean().item()


DEEPEST = {"loss": "kl", "teacher": "student", "head_T": 0, "temperature": 3, "weight": 0.3}
HIDDEN = {"loss": "hidden_mse", "teacher": "student", "feature": "hidden", "layer_T": 2, "weight": 0.03}

RECIPES = {
    "Tf-KD": Recipe(
        {
            "terms": [{"loss": {"name": "tf_kd", "correct": 0.99}, "temperature": 20, "weight": 0.1}],
            "hard_label_weight": 0.9,
        },
        student=partial(Net, 1),
        teacher=lambda: None,
        data=data,
        distance=error,
        adaptor=adaptor,
        **SHORT,
    ),
    "BYOT": Recipe(
        {
            "terms": [{**DEEPEST, "head_S": head} for head in (1, 2)]
            + [{**HIDDEN, "layer_S": layer} for layer in (0, 1)],
            "hard_label_weight": 0.7,
        },
        student=partial(Net, 1, heads=3),
        teacher=lambda: None,
        data=data,
        distance=error,
        adaptor=adaptor,
        **SHORT,
    ),
    "Mean Teacher": Recipe(
        {
            "terms": [{"loss": "mean_teacher", "weight_scheduler": "sigmoid_rampup"}],
            "hard_label_weight": 1,
            "teacher_update": {"name": "ema", "decay": 0.9},
        },
        student=partial(Net, 1),
        teacher=partial(Net, 1),
        data=data,
        distance=error,
        adaptor=adaptor,
        **SHORT,
    ),
    "Function matching": Recipe(
        {"terms": [{"loss": "kl", "temperature": 2}]},
        student=partial(Net, 1),
        teacher=partial(sure, 9),
        data=data,
        distance=apart,
        adaptor=lambda batch, outputs: {**outputs, "labels": [batch[1]]},
        generates=lambda student: Mixup(CLASSES),
        **SHORT,
    ),
    "Served teacher": Recipe(
        {"terms": [{"loss": "kl", "temperature": 2}]},
        student=partial(Net, 1),
        teacher=served,
        data=data,
        distance=from_server,
        entries=("http_teacher",),
        **SHORT,
    ),
}
