"""Names of plugin inputs and adaptor keys, with their descriptions."""

from __future__ import annotations

from types import MappingProxyType

ADAPTOR_KEYS = ("logits", "logits_mask", "losses", "inputs_mask", "labels", "hidden", "attention")
"""TextBrewer's keys of an adaptor's result."""

EXTRAS = "extras"
"""Key of an adaptor's result, and of a batch, for a mapping of further tensors by name. No model gets it."""

OUTPUT_KEYS = (*ADAPTOR_KEYS, EXTRAS)
"""The keys that an adaptor may return."""

EXAMPLE_IDS = "example_ids"
"""The batch key of the examples' ids, which reaches adaptors but not models."""

FEATURES = ("hidden", "attention")
"""The adaptor keys that an intermediate match may read."""

INPUTS = MappingProxyType(
    {
        "student_logits": "student logits, [*items, classes], one head per call; [batch, length, classes] with whole_sequences",
        "teacher_logits": "teacher logits, [*items, classes], one head per call; [batch, length, classes] with whole_sequences",
        "teacher_sparse": "SparseLogits; None if the teacher's logits are dense",
        "teacher_tensor": "a parameter of the teacher",
        "student_tensor": "the student's parameter of the same name, detached, in the precision of the teacher's",
        "teacher_logits_list": "logits of several teachers: a tuple of [*items, classes], one head per call",
        "student_features": "the matched student feature after its projection, or a tuple of them",
        "teacher_features": "the matched teacher feature, or a tuple of them",
        "student_extras": "the student's extras that the term names, by name, with gradient",
        "teacher_extras": "the same extras of the teacher, detached",
        "student_parameters": "the student's parameters and buffers that the term names, by path, with gradient",
        "teacher_parameters": "the teacher's parameters and buffers that the term names, by path, detached",
        "mask": "bool over items or tokens, True = counts; None if nothing is masked, and for a loss on logits unless it "
        "declares whole_sequences",
        "student_mask": "like mask, for the student's inputs only; if requested, the two sides may differ in length",
        "teacher_mask": "like mask, for the teacher's inputs only",
        "labels": "integer class indices, -100 = none; or class probabilities, floating-point, [*items, classes]; None if the "
        "student's adaptor returned no labels",
        "example_ids": "int64, the example's place in the data: [batch], or [*items] in a loss on logits, like class indices",
        "temperature": "float, or a tensor over items when scheduled",
        "progress": "fraction of the run done, in [0, 1]",
        "step": "optimizer steps done",
        "total_steps": "optimizer steps of the whole run",
        "epoch": "int, number of completed epochs: 0 in the first epoch",
        "draw_seed": "int, random seed, different for each step, micro-batch, head, chunk and process",
        "in_dim": "width of the student feature",
        "out_dim": "width of the teacher feature",
        "num_examples": "number of examples in the data",
        "values": "the unweighted value of each term in the last optimizer step, over all processes, detached, [num_terms]",
        "gradients": "the norm of each unweighted term's gradient on the student parameters that the balancer's layer names, "
        "detached, [num_terms]; computed only if requested",
        "num_terms": "number of terms of the objective",
        "weights": "the weight of each term in the config, without its scheduler; 1 for a share",
        "shares": "the share of each term in the config; None for a term with a weight",
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
"""TextBrewer's parameter names and the kdplug inputs they map to."""
