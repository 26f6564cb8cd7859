"""Texts, and language models with their own tokenizers."""

from __future__ import annotations

from task_scene import GPT2, TEXTS, recipe, reviews, save_model, tokenizer, write_csv

HARD = ["a naïve café 🙂 film", "the plot, the plot!", "日本 was good", "  nice film and  plot\nwas bad"]
ALL_TEXTS = [*(row["text"] for row in reviews(48)), *HARD * 3]
PAIRS = [{"prompt": f"{text}: ", "completion": text.split()[-1]} for text in TEXTS * 4]


def write_two(folder):
    """Texts, prompts, and models of three vocabularies, two of them equal in size; the folder."""
    (folder / "text.txt").write_text("\n\n".join(ALL_TEXTS), encoding="utf-8")
    write_csv(folder / "pairs.csv", PAIRS)
    save(folder / "teacher", tokenizer(ALL_TEXTS, is_framed=False, vocab=320))
    save(folder / "student", tokenizer(HARD, is_framed=False, vocab=280), seed=1, n_layer=1)
    save(folder / "equal", tokenizer(["something else entirely, zebra"], is_framed=False, vocab=320))
    return folder


def save(path, brings, seed=0, **changes):
    """A folder with a random model that has a few more embeddings than its tokenizer has tokens."""
    ids = {f"{one}_token_id": getattr(brings, f"{one}_token_id") for one in ("bos", "eos", "pad")}
    size = len(brings) + 7
    save_model(path, "AutoModelForCausalLM", {**GPT2, **changes}, seed=seed, brings=brings, vocab_size=size, **ids)


def settings(folder, **changes):
    """A task of two tokenizers, with changes."""
    prompts = changes.get("prompts", False)
    data = {"train": str(folder / ("pairs.csv" if prompts else "text.txt")), "test": 0.2}
    given = {"data": data, "teacher": str(folder / "teacher"), "student": str(folder / "student"), "max_length": 40}
    return {"name": "causal-lm", **given, **changes}


def make(folder, out, *changes, **more):
    """A recipe that distils across tokenizers quickly."""
    return recipe(settings(folder, **more), out, *changes, kd_loss_type="uld", kd_loss_weight=1.5, temperature=1)
