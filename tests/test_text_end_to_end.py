"""Federations of text, from the data to the perplexity or the accuracy."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import rayfl
from rayfl.config.schema import load_config

WORDS = ["[PAD]", "good", "bad", "day", "night", "a", "the", "very"]


@pytest.mark.slow
def test_roles_of_shakespeare_bring_the_perplexity_down(small):
    small |= {
        "data": {"name": "shakespeare", "min_windows": 30},
        "partition": {"name": "by_group"},
        "model": {"name": "lstm", "hidden": 32},
        "algorithm": {"name": "fednsam"},
    }
    small["federation"] |= {"clients": 10, "cohort": 5, "lr": 2.0, "batch_size": 4, "rounds": 5}
    result = rayfl.run(load_config(small), local=True)
    assert result.summary["perplexity_final"] < 30  # a uniform guess has 60


@pytest.mark.slow
def test_the_shipped_config_learns():
    options = ["tracking.enabled=false", "checkpoint.every=null", "federation.rounds=15"]
    result = rayfl.run(load_config("shakespeare", options), local=True)
    assert result.summary["perplexity_final"] < 12


@pytest.mark.slow
def test_a_pretrained_classifier_with_adapters_and_its_tokenizer(small, tmp_path):
    """Texts of three groups, good or bad, by a BERT of a few thousand parameters."""
    texts = tmp_path / "texts.jsonl"
    rows = [
        {"who": f"hospital {k % 3}", "text": f"{a} very {mood} {when}", "mood": mood}
        for k, a in enumerate(["a", "the"] * 15)
        for mood in ("good", "bad")
        for when in ("day", "night")
    ]
    texts.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    torch.manual_seed(0)
    folder = tmp_path / "bert"
    BertModel(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=8,
            pad_token_id=0,
            initializer_range=0.2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(folder)
    small |= {
        "data": {"name": "hf", "path": str(texts), "input_column": "text"}
        | {"label_column": "mood", "group_column": "who", "tokens": str(folder), "length": 6},
        "partition": {"name": "by_group"},
        "model": {"name": "hf", "path": str(folder), "lora": {"r": 2}},
        "algorithm": {"name": "fedavg"},
    }
    small["federation"] |= {
        "clients": 3,
        "cohort": 3,
        "lr": 0.05,
        "rounds": 8,
        "local_epochs": 2,
        "batch_size": 4,
    }
    result = rayfl.run(load_config(small), local=True)
    assert result.summary["accuracy_final"] > 0.9
