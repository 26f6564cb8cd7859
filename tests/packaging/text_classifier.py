"""Write what the pages on text classification take for granted: ``train.csv``, ``test.csv`` and ``my-finetuned-bert``.

The model is a BERT of twelve narrow layers with random weights, whose vocabulary is the words of the data.
"""

import csv
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

random.seed(0)
torch.manual_seed(0)
words = {"good": ["fine", "warm", "clear", "kind"], "bad": ["dull", "cold", "vague", "rude"]}
rows = [(" ".join(random.choices(words[label], k=5)), label) for label in ("good", "bad") * 48]
for file, part in {"train.csv": rows[:64], "test.csv": rows[64:]}.items():
    with Path(file).open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("text", "label"), *part])

vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words["good"], *words["bad"]]
ids = {word: number for number, word in enumerate(vocabulary)}
tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")]
)
special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained("my-finetuned-bert")

labels = dict(enumerate(sorted(words)))
config = BertConfig(
    vocab_size=len(vocabulary),
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=12,
    num_attention_heads=2,
    max_position_embeddings=128,
    id2label=labels,
    label2id={label: number for number, label in labels.items()},
)
BertForSequenceClassification(config).save_pretrained("my-finetuned-bert")
