"""Recipes of the methods for encoders and rerankers: small transformers learn from larger ones."""

from __future__ import annotations

from functools import partial

import torch
from recipe import SHORT, Recipe
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, relu
from torch.utils.data import Dataset, TensorDataset

WORDS, LENGTH, CLASSES, HEADS = 30, 7, 5, 2


class Block(nn.Module):
    """Self-attention and a hidden layer. ``forward`` returns the hidden states and the attention scores."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, hidden: Tensor, additive: Tensor) -> tuple[Tensor, Tensor]:
        """Add ``additive``, −10,000 where a token does not count, to the scores."""
        query, key, value = (
            part(hidden).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + additive
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        hidden = self.first(hidden + self.out(mixed))
        return self.second(hidden + self.outer(relu(self.inner(hidden)))), scores


class Encoder(nn.Module):
    """A classifier of token sequences; its outputs need no adaptor."""

    def __init__(self, width: int, layers: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.words, self.places = nn.Embedding(WORDS, width), nn.Parameter(torch.randn(LENGTH, width))
            self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
            self.head = nn.Linear(width, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """Return logits, hidden states with the embeddings, attention scores, and the mask."""
        additive = -10_000.0 * ~mask[:, None, None, :]
        hidden, attention = [self.words(ids) + self.places], []
        for block in self.blocks:
            value, scores = block(hidden[-1], additive)
            hidden.append(value)
            attention.append(scores)
        logits = self.head(hidden[-1][:, 0])
        return {"logits": logits, "hidden": hidden, "attention": attention, "inputs_mask": mask}


def student(*frozen: str, width: int = 8) -> nn.Module:
    """Return an untrained encoder of two layers, in which the parameters that begin with ``frozen`` are not trained."""
    found = Encoder(width, 2, seed=1)
    for name, parameter in found.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    return found


def teacher() -> nn.Module:
    """Return a wider encoder of four layers with random weights."""
    return Encoder(12, 4, seed=2)


def texts(count: int = 24) -> Dataset[tuple[Tensor, ...]]:
    """Return token ids and the mask of texts of unequal lengths."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(3, LENGTH + 1, (count,), generator=generator)
    ids = torch.randint(WORDS, (count, LENGTH), generator=generator)
    return TensorDataset(ids, torch.arange(LENGTH) < lengths[:, None])


@torch.no_grad()
def outputs(model: nn.Module) -> dict[str, Tensor | list[Tensor]]:
    """Return the outputs for all texts, as an evaluation computes them."""
    training = model.training
    found = model.eval()(*texts()[:])
    model.train(training)
    return found


def alike(features: Tensor) -> Tensor:
    """Return the cosine similarities of all pairs of tokens that count."""
    rows = features[texts()[:][1]].double()
    rows = rows - rows.mean(0)
    return cosine_similarity(rows[:, None], rows[None], dim=-1)


def hidden_apart(own: int, other: int):
    """Return the mean difference of similarities between tokens in two layers of hidden states."""

    def distance(student: nn.Module, teacher: nn.Module) -> float:
        one, two = outputs(student)["hidden"][own], outputs(teacher)["hidden"][other]
        return float((alike(one) - alike(two)).abs().mean())

    return distance


def first_token_apart(student: nn.Module, teacher: nn.Module) -> float:
    """Return the angle of the last layer's first token to that of the nearest teacher layer, as 1 − cosine."""
    own = outputs(student)["hidden"][-1][:, 0]
    angles = [1 - cosine_similarity(own, layer[:, 0], dim=-1) for layer in outputs(teacher)["hidden"][1:]]
    return float(torch.stack(angles).amin(0).mean())


def attention_apart(own: int, other: int):
    """Return the mean total variation between the attention of two layers."""

    def distance(student: nn.Module, teacher: nn.Module) -> float:
        one, two = (outputs(model)["attention"][layer] for model, layer in ((student, own), (teacher, other)))
        rows = (one.softmax(-1) - two.softmax(-1)).abs().sum(-1).transpose(1, 2)
        return float(rows[texts()[:][1]].mean()) / 2

    return distance


def predictions_apart(student: nn.Module, teacher: nn.Module) -> float:
    """Return the mean total variation between the predictions."""
    one, two = (outputs(model)["logits"].softmax(-1) for model in (student, teacher))
    return float((one - two).abs().sum(-1).mean()) / 2


def parts(*layers: int, of: tuple[str, ...] = ("query", "key")) -> list[str]:
    """Return the paths of parts of blocks; the part without a name is the block itself."""
    return [f"blocks.{layer}.{part}".removesuffix(".") for layer in layers for part in of]


def encoders(distance, term, frozen: tuple[str, ...] = (), **keys) -> Recipe:
    """Return a recipe with one term. What no loss reads is ``frozen``: the rest of the last block, and the head."""
    models = partial(student, *frozen, **keys), teacher
    return Recipe({"terms": [term]}, *models, texts, distance, **SHORT)


QKV, EMD, HEAD = ("query", "key", "value"), ("query", "key", ""), ("head",)
AFTER_QKV = ("head", *(f"blocks.1.{part}" for part in ("out", "inner", "outer", "first", "second")))
AFTER_SCORES = (*AFTER_QKV, "blocks.1.value")

ENCODERS = {
    "minilmv2": encoders(
        attention_apart(1, 3),
        {"loss": {"name": "minilmv2", "relation_heads": 4}, "layer_S": parts(1, of=QKV), "layer_T": parts(3, of=QKV)},
        AFTER_QKV,
    ),
    "tinybert_attention": encoders(
        attention_apart(1, 3),
        {"loss": "tinybert_attention", "feature": "attention", "layer_S": [0, 1], "layer_T": [1, 3]},
        AFTER_SCORES,
    ),
    "tinybert_query_key": encoders(
        attention_apart(1, 3),
        {"loss": {"name": "tinybert_query_key", "heads": HEADS}, "layer_S": parts(0, 1), "layer_T": parts(1, 3)},
        AFTER_SCORES,
    ),
    "tinybert_hidden": encoders(
        hidden_apart(2, 4),
        {"loss": "tinybert_hidden", "feature": "hidden", "layer_S": [0, 1, 2], "layer_T": [0, 2, 4]},
        HEAD,
    ),
    "tinybert_prediction": encoders(predictions_apart, {"loss": "tinybert_prediction", "temperature": 1}),
    "alp_kd": encoders(
        first_token_apart,
        {"loss": "alp_kd", "feature": "hidden", "layer_S": [1, 2], "layer_T": [1, 2, 3, 4]},
        HEAD,
        width=12,
    ),
    "bert_emd": encoders(
        hidden_apart(2, 4),
        {
            "loss": {"name": "bert_emd", "heads": HEADS},
            "layer_S": parts(0, 1, of=EMD),
            "layer_T": parts(0, 1, 2, 3, of=EMD),
        },
        HEAD,
    ),
}


class BiEncoder(nn.Module):
    """Scores each candidate by the dot product of its embedding with that of the query."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.words, self.inner = nn.Embedding(WORDS, width), nn.Linear(width, width)

    def embedded(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.inner(self.words(ids).mean(-2)))

    def forward(self, query: Tensor, candidates: Tensor) -> dict[str, Tensor]:
        """Return scores ``[batch, candidates]``."""
        return {"logits": (self.embedded(query).unsqueeze(1) * self.embedded(candidates)).sum(-1)}


def queries(count: int = 24) -> Dataset[tuple[Tensor, ...]]:
    """Return queries of four words, each with five candidates of six."""
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(
        torch.randint(WORDS, (count, 4), generator=generator), torch.randint(WORDS, (count, 5, 6), generator=generator)
    )


@torch.no_grad()
def order_apart(student: nn.Module, teacher: nn.Module) -> float:
    """Return the share of pairs of candidates that the two models order differently."""
    one, two = (model(*queries()[:])["logits"] for model in (student, teacher))
    return float(((one[:, :, None] > one[:, None]) != (two[:, :, None] > two[:, None])).double().mean())


def reranker(loss, **keys) -> Recipe:
    """Return a recipe with one term on scores."""
    terms = [{"loss": loss, **keys}]
    models = partial(BiEncoder, 6, seed=1), partial(BiEncoder, 16, seed=2)
    return Recipe({"terms": terms}, *models, queries, order_apart, **SHORT)


RERANKERS = {
    "margin_mse": reranker("margin_mse"),
    "score_kl": reranker({"name": "score_kl", "teacher_temperature": 2.0}, temperature=1),
}

RECIPES = {**ENCODERS, **RERANKERS}
