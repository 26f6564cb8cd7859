"""The words that plugins and adaptors may use, and what each one holds."""

from __future__ import annotations

from types import MappingProxyType

ADAPTOR_KEYS = ("logits", "logits_mask", "losses", "inputs_mask", "labels", "hidden", "attention")
"""The keys that an adaptor may return."""

FEATURES = ("hidden", "attention")
"""The adaptor keys that an intermediate match may read."""

INPUTS = MappingProxyType(
    {
        "student_logits": "student logits, [*items, classes], one head at a time",
        "teacher_logits": "teacher logits, [*items, classes], one head at a time",
        "teacher_sparse": "SparseLogits; None where the teacher's logits are dense",
        "teacher_logits_list": "logits of several teachers, a tuple of [*items, classes], one head at a time",
        "student_features": "the matched student feature after its projection, or a tuple of them",
        "teacher_features": "the matched teacher feature, or a tuple of them",
        "mask": "bool over items or tokens, True = counts; None where nothing is masked",
        "student_mask": "like mask, of the student's inputs alone; where it is asked for, the two sides may differ in length",
        "teacher_mask": "like mask, of the teacher's inputs alone",
        "labels": "integer class indices, -100 = none",
        "temperature": "float, or a tensor over items when scheduled",
        "progress": "share of the run that is done, in [0, 1]",
        "step": "optimizer steps done",
        "total_steps": "optimizer steps of the whole run",
        "draw_seed": "int, seed of what is drawn at random: its own for each step, micro-batch, head, chunk and process",
        "in_dim": "width of the student feature",
        "out_dim": "width of the teacher feature",
        "student_layers": "number of layers of the student, without embeddings",
        "teacher_layers": "number of layers of the teacher, without embeddings",
    }
)
"""Every input that the engine provides, by name."""

ALIASES = MappingProxyType(
    {
        f"{word}_{side}": f"{owner}_{value}"
        for side, owner in (("S", "student"), ("T", "teacher"))
        for word, value in (
            ("logits", "logits"),
            ("feature", "features"),
            ("state", "features"),
            ("attention", "features"),
        )
    }
)
"""TextBrewer's parameter names and the inputs they stand for."""
