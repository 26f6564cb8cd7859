"""Tasks as they should be, for mutants to differ from in one thing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from kdplug import Prediction, Predictions
from kdplug.testing import TaskLaws


class Sums:
    """Is the sum of four numbers positive?"""

    metric = "accuracy"

    def about(self) -> str:
        return "Signs of sums."

    def build_teacher(self) -> nn.Module:
        return nn.Linear(4, 2)

    def teacher_fit(self) -> Any:
        return {"epochs": 1, "batch_size": 4, "learning_rate": 0.1}

    def build_student(self) -> nn.Module:
        return nn.Linear(4, 2)

    def data(self, part: str) -> Any:
        return torch.randn(6, 4, generator=torch.Generator().manual_seed(len(part)))

    def collate(self, examples: Any) -> Any:
        return (torch.stack(examples),)

    def teacher_adaptor(self, batch: Any, outputs: Any) -> Any:
        return {"logits": outputs}

    def student_adaptor(self, batch: Any, outputs: Any) -> Any:
        labels = (batch[0].sum(-1) > 0).long()
        return {"logits": outputs, "losses": functional.cross_entropy(outputs, labels, reduction="none")}

    def evaluate(self, model: nn.Module, batches: Any) -> dict[str, float]:
        right = [model(*batch).argmax(-1) == (batch[0].sum(-1) > 0) for batch in batches]
        return {"accuracy": float(torch.cat(right).float().mean())}


class Generous(Sums):
    """Sums, from a task that offers all that it may."""

    is_lower_better = False
    unit = "numbers"
    starts_student = prepares_batches = True

    def expect(self, reads: frozenset[str]) -> None:
        self.reads = reads

    def check(self) -> None:
        self.data("test")

    def adapted(self, found: Any) -> Any:
        return {**found, "hidden": (found["logits"],)} if "hidden" in getattr(self, "reads", ()) else found

    def teacher_adaptor(self, batch: Any, outputs: Any) -> Any:
        return self.adapted(super().teacher_adaptor(batch, outputs))

    def student_adaptor(self, batch: Any, outputs: Any) -> Any:
        return self.adapted(super().student_adaptor(batch, outputs))

    def start_student(self, student: nn.Module, teacher: nn.Module) -> None:
        student.load_state_dict(teacher.state_dict())

    def count(self, batch: Any) -> int:
        return int(batch[0].numel())

    def prepare_batch(self, batch: Any, student: nn.Module) -> Any:
        return (batch[0] + torch.rand_like(batch[0]) * student(batch[0]).std(),)

    def answer(self, model: nn.Module, batch: Any) -> Any:
        return model(*batch).softmax(-1)

    def row(self, numbers: torch.Tensor, answer: torch.Tensor) -> Prediction:
        label, found = int(numbers.sum() > 0), int(answer.argmax())
        return {"score": float(label == found), "label": label, "prediction": found, "input": str(numbers.tolist())}

    def predict(self, model: nn.Module, batches: Any) -> Predictions:
        rows = [self.row(*pair) for batch in batches for pair in zip(batch[0], model(*batch), strict=True)]
        return Predictions({"accuracy": sum(row["score"] for row in rows) / len(rows)}, rows)

    def fingerprint(self) -> Any:
        return {"teacher": "random"}

    def review_data(self) -> Any:
        yield "data.train", f"only {len(self.data('baseline'))} rows"

    def review_teacher(self, outputs: Any) -> Any:
        first = next(iter(outputs))
        yield "teacher", f"{first.logits[0].shape[-1]} classes"


class Regressed(Sums):
    """The sum itself, of which the metric is a correlation."""

    metric = "pearson"

    def build_teacher(self) -> nn.Module:
        return nn.Linear(4, 1)

    build_student = build_teacher

    def student_adaptor(self, batch: Any, outputs: Any) -> Any:
        return {"logits": outputs, "losses": (outputs.squeeze(-1) - batch[0].sum(-1)).square()}

    def predict(self, model: nn.Module, batches: Any) -> Predictions:
        pairs = [pair for batch in batches for pair in zip(batch[0].sum(-1), model(*batch).squeeze(-1), strict=True)]
        rows: list[Prediction] = [
            {"score": -abs(float(label - found)), "label": float(label), "prediction": float(found)}
            for label, found in pairs
        ]
        figure = float(torch.corrcoef(torch.tensor(pairs).T)[0, 1]) if len(pairs) > 1 else 0.0
        return Predictions({"pearson": figure}, rows, "pearson", "number")

    def evaluate(self, model: nn.Module, batches: Any) -> dict[str, float]:
        return dict(self.predict(model, batches).metrics)


class Bilingual(Sums):
    """Sums, from a teacher that has a third class."""

    vocabulary_difference = "2 classes and 3"

    def build_teacher(self) -> nn.Module:
        return nn.Linear(4, 3)

    def data(self, part: str) -> Any:
        return [("alone", one) for one in super().data(part)] if part == "teacher" else list(super().data(part))

    def collate(self, examples: Any) -> Any:
        if isinstance(examples[0], tuple):
            return super().collate([one for _, one in examples])
        return {"teacher": super().collate(examples), "student": super().collate(examples)}

    def evaluate(self, model: nn.Module, batches: Any) -> dict[str, float]:
        return super().evaluate(model, [batch["student"] for batch in batches])


class SumsLaws(TaskLaws):
    pass
