"""Methods on queries and keys give the same value with every attention kernel of transformers."""

from __future__ import annotations

import pytest
import torch

import kdplug

transformers = pytest.importorskip("transformers")

QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
QUERY_KEY, EMD = QKV[:2], (*QKV[:2], "")
LENGTHS = torch.tensor([5, 3, 4])


def bert(kernel, width, layers):
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=16,
        attn_implementation=kernel,
    )
    with torch.random.fork_rng():
        torch.manual_seed(width)
        return transformers.BertModel(config, add_pooling_layer=False).eval()


def parts(*layers, of):
    return [f"encoder.layer.{layer}.{part}".removesuffix(".") for layer in layers for part in of]


TERMS = {
    "minilmv2": {
        "loss": {"name": "minilmv2", "relation_heads": 4},
        "layer_S": parts(1, of=QKV),
        "layer_T": parts(2, of=QKV),
    },
    "tinybert_query_key": {
        "loss": {"name": "tinybert_query_key", "heads": 2},
        "layer_S": parts(0, 1, of=QUERY_KEY),
        "layer_T": parts(1, 3, of=QUERY_KEY),
    },
    "bert_emd": {
        "loss": {"name": "bert_emd", "heads": 2},
        "layer_S": parts(0, 1, of=EMD),
        "layer_T": parts(0, 1, 2, 3, of=EMD),
    },
}


def value(kernel, term):
    student, teacher = bert(kernel, 8, 2), bert(kernel, 12, 4)
    objective = kdplug.Objective(kdplug.DistillationConfig(terms=[term]))
    ids = torch.randint(20, (3, 5), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(5) < LENGTHS[:, None]).long()
    torch.manual_seed(0)
    with objective.capture(student, teacher) as capture:
        with torch.no_grad(), capture.teacher.reading():
            given = teacher(ids, mask, output_attentions=kernel == "eager")
        with capture.student.reading():
            made = student(ids, mask)
        sides = {
            "student": capture.student.join({"inputs_mask": mask}),
            "teacher": capture.teacher.join({"inputs_mask": mask}),
        }
        if objective.needs_materialize:
            objective.materialize(**sides)
        report = objective(**sides)
    assert bool(given.attentions) is (kernel == "eager")
    assert made.last_hidden_state.requires_grad
    return report.total


@pytest.mark.parametrize("name", TERMS)
def test_no_attention_map_is_needed(name):
    fast, slow = (value(kernel, TERMS[name]) for kernel in ("sdpa", "eager"))
    assert fast > 0
    torch.testing.assert_close(fast, slow)
    fast.backward()
