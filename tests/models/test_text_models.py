"""Models for tokens: recurrent networks, the small transformer, and those of the library transformers."""

import dataclasses
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from rayfl.config.schema import load_config
from rayfl.errors import ConfigError
from rayfl.models import Tokens, build, plain_state_dict
from rayfl.models.huggingface import HuggingFaceModel
from rayfl.models.lora import LoRA
from rayfl.models.recurrent import GRU, LSTM
from rayfl.models.text_transformer import TextTransformer
from rayfl.training.shortcuts import choose
from rayfl.training.task import Task

WORDS, LENGTH, CLASSES = 20, 6, 3
OWN = {
    "lstm": LSTM(hidden=8),
    "gru": GRU(hidden=8, layers=2),
    "transformer": TextTransformer(width=8),
}
TINY = {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": WORDS, "n_positions": 16}


def made(spec, each, seed=0):
    trial = torch.tensor([[0] * LENGTH, [WORDS - 1] * LENGTH])
    classes = WORDS if each else CLASSES
    return build(spec, (LENGTH,), classes, seed, trial, Tokens(WORDS, LENGTH, each))


def minibatches(each):
    torch.manual_seed(3)
    shape, classes = ((3, LENGTH), WORDS) if each else ((3,), CLASSES)
    return tuple(
        (torch.randint(0, WORDS, (3, LENGTH)), torch.randint(0, classes, shape)) for _ in range(2)
    )


def shortcuts(model, each, stack=None):
    task = Task(kind="tokens", shape=(LENGTH, WORDS)) if each else Task(shape=(CLASSES,))
    return choose(model, "it", task, minibatches(each), stack=stack)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """Directory of a tiny GPT-2 with random weights."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(5)
    GPT2LMHeadModel(GPT2Config(**TINY, pad_token_id=0)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """Directory of a tiny BERT with random weights, without a head."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(6)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("name", OWN)
def test_trains_as_in_plain_pytorch(name, each):
    model = made(OWN[name], each)
    assert shortcuts(model, each).dropped == ()
    if name == "transformer":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # attention of a stack is computed client by client
            assert shortcuts(model, each, stack=2).dropped == ()
    else:
        with pytest.raises(ConfigError, match=r"federation\.stack = 2: .* one at a time"):
            shortcuts(model, each, stack=2)


@pytest.mark.parametrize("name", OWN)
def test_no_position_sees_the_tokens_that_it_is_to_predict(name):
    model = made(OWN[name], each=True).eval()
    tokens = torch.randint(0, WORDS, (2, LENGTH))
    later = tokens.clone()
    later[:, 4:] = (later[:, 4:] + 1) % WORDS
    first, second = model(tokens), model(later)
    torch.testing.assert_close(first[:, :4], second[:, :4])
    assert not torch.allclose(first[:, 4:], second[:, 4:])


@pytest.mark.parametrize("name", OWN)
def test_padding_does_not_count(name):
    """A short text gives what it gives without its padding; and one that is empty gives something."""
    model = made(dataclasses.replace(OWN[name], padding=0), each=False).eval()
    text = torch.randint(1, WORDS, (1, 4))
    filled = nn.functional.pad(text, (0, 2))
    if name == "transformer":
        short = {"positions": model.positions[:4]}
        torch.testing.assert_close(model(filled), functional_call(model, short, text))
    else:
        torch.testing.assert_close(model(filled), model(text))
    assert model(torch.zeros_like(filled)).isfinite().all()
    counted = made(OWN[name], each=False).eval()
    assert not torch.allclose(counted(filled), counted(nn.functional.pad(text, (0, 2), value=1)))


def test_samples_that_are_no_tokens_are_refused():
    for spec in (LSTM(), TextTransformer(), HuggingFaceModel(path="x")):
        with pytest.raises(ConfigError, match=r"model\.name = .* takes integer tokens"):
            build(spec, (4,), 3, seed=0)
    with pytest.raises(ConfigError, match=r"model\.width = 10: .* a multiple of model\.heads = 4"):
        TextTransformer(width=10)


def test_a_language_model_is_that_of_its_directory(gpt2):
    model = made(HuggingFaceModel(path=gpt2), each=True).eval()
    theirs = GPT2LMHeadModel.from_pretrained(gpt2).eval()
    tokens = torch.randint(1, WORDS, (2, LENGTH))
    torch.testing.assert_close(model(tokens), theirs(tokens).logits)
    theirs.load_state_dict(plain_state_dict(model))  # the names are theirs
    assert shortcuts(made(HuggingFaceModel(path=gpt2), each=True), True).dropped == ()


def test_random_weights_depend_on_the_seed_alone(gpt2):
    spec = HuggingFaceModel(path=gpt2, pretrained=False)
    first, again, other = (made(spec, each=True, seed=seed) for seed in (1, 1, 2))
    weights = [model.transformer.wte.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_classifier_has_a_head_of_its_own_and_does_not_see_padding(bert):
    model = made(HuggingFaceModel(path=bert), each=False)
    assert shortcuts(model, False).dropped == ()
    pretrained = BertModel.from_pretrained(bert)
    assert torch.equal(
        model.bert.embeddings.word_embeddings.weight, pretrained.get_input_embeddings().weight
    )
    model.eval()
    text = torch.randint(1, WORDS, (1, 4))
    torch.testing.assert_close(model(nn.functional.pad(text, (0, 2))), model(text))


@pytest.mark.parametrize("each", [True, False])
def test_adapters_train_alone_and_merge(gpt2, each):
    options = {"path": gpt2, "lora": LoRA(r=2)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = made(HuggingFaceModel(**options), each)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    heads = set() if each else {"score.weight"}
    assert {n for n in trained if "lora_" not in n} == heads
    assert len(trained - heads) == 2 * 2  # A and B of c_attn in two blocks
    assert shortcuts(model, each).dropped == ()
    model.eval()
    with torch.no_grad():
        for name in trained:
            model.get_parameter(name).add_(0.1)
    tokens = torch.randint(1, WORDS, (2, LENGTH))
    plain = made(dataclasses.replace(HuggingFaceModel(**options), lora=None), each).eval()
    assert not torch.allclose(model(tokens), plain(tokens), atol=1e-3)
    plain.load_state_dict(plain_state_dict(model))
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_said(gpt2, bert, tmp_path):
    cases = [
        ({"path": bert}, True, "sees the tokens that it is to predict"),
        ({"path": str(tmp_path)}, True, "cannot be read by `transformers`"),
        ({"path": "/no/where"}, True, "there is no /no/where"),
    ]
    for options, each, problem in cases:
        with pytest.raises(ConfigError, match=rf"model\.path = .*{problem}") as error:
            made(HuggingFaceModel(**options), each)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"knows 20 tokens, and the data have 21"):
        HuggingFaceModel(path=gpt2).build_on(Tokens(WORDS + 1, LENGTH, True), WORDS + 1)


def test_the_same_weights_are_the_same_experiment_wherever_they_lie(gpt2, tmp_path, small):
    def hash_of(path, **options):
        small["model"] = {"name": "hf", "path": str(path), **options}
        return load_config(small).hash

    GPT2LMHeadModel.from_pretrained(gpt2).save_pretrained(tmp_path / "copy")
    assert hash_of(gpt2) == hash_of(tmp_path / "copy")
    assert hash_of(gpt2) != hash_of(gpt2, pretrained=False)
    torch.manual_seed(7)
    GPT2LMHeadModel(GPT2Config(**TINY, pad_token_id=0)).save_pretrained(tmp_path / "other")
    assert hash_of(gpt2) != hash_of(tmp_path / "other")
    assert hash_of(gpt2, pretrained=False) == hash_of(tmp_path / "other", pretrained=False)


def test_a_token_with_the_number_of_the_padding_is_a_token_of_a_window(gpt2):
    """Windows of a text have no padding: what stands at 0 is seen by all that follows."""
    model = made(HuggingFaceModel(path=gpt2), True).eval()
    tokens = torch.arange(1, LENGTH + 1)[None].repeat(2, 1)
    tokens[:, 2] = 0
    with torch.no_grad():
        before = model(tokens)
        model.get_input_embeddings().weight[0] += torch.linspace(-1, 1, 8)
        after = model(tokens)
    # But for the logit of the token itself, whose weights are its embedding.
    moved = (after - before)[0, :, 1:].abs().amax(-1) > 1e-6
    assert moved.tolist() == [False] * 2 + [True] * (LENGTH - 2)
