"""Models of Hugging Face's library `transformers`, for tokens: their config and weights from a directory.

A language model predicts the next token at each position, a classifier gives logits of a text. Dropout is
that of the model's own config. Code that comes with weights is never run.

Shapes: B samples, L tokens.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from rayfl.errors import ConfigError, Refuse, reason
from rayfl.models.files import file_sha256
from rayfl.models.lora import LoRA
from rayfl.models.pretrained import FromFiles
from rayfl.models.tokens import TokenModel, Tokens
from rayfl.text import absolute, here_or_on_the_hub

_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class HuggingFaceModel(TokenModel, FromFiles):
    """A language model or a text classifier of the library transformers, by its directory; for tokens."""

    path: Annotated[
        str, Field(description="directory of save_pretrained, or a name on the Hugging Face Hub")
    ]
    revision: Annotated[str | None, Field(description="commit or tag of a name on the Hub")] = None
    pretrained: Annotated[
        bool, Field(description="start from its weights; false: random ones, by its config")
    ] = True
    lora: Annotated[
        LoRA | None,
        Field(
            description="train low-rank adapters and a classifier's head, freeze the rest; {}: with the "
            "defaults"
        ),
    ] = None

    def content(self) -> dict[str, str | None]:
        folder = absolute(self.path)
        if not folder.is_dir():
            return {}
        weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        files = [folder / _CONFIG, *(weights if self.pretrained else [])]
        found = [file_sha256(file) for file in files if file.is_file()]
        return {"path": f"sha256:{hashlib.sha256(' '.join(found).encode()).hexdigest()}"}

    def build_on(self, tokens: Tokens, num_classes: int) -> nn.Module:
        refuse = partial(ConfigError, key="model.path", value=self.path)
        with _quiet(refuse):
            model = self._loaded(tokens, num_classes, refuse)
        known = model.get_input_embeddings().num_embeddings
        if tokens.vocabulary > known:
            raise refuse(
                f"knows {known} tokens, and the data have {tokens.vocabulary}; take the model's own "
                "tokenizer for data.tokens",
                keys=("data.tokens",),
            )
        if self.lora is not None:
            targets = _usual_targets(model.config.model_type) or ()
            self.lora.add(model, () if tokens.each else _heads(model), targets)
        # Windows of a text have no padding: a token of that number is a token.
        padding = None if tokens.each else model.config.pad_token_id
        model.register_forward_pre_hook(_Mask(padding), with_kwargs=True)
        model.register_forward_hook(_Logits(num_classes))
        if tokens.each:
            _check_causal(model, tokens, refuse)
        return model

    def _loaded(self, tokens: Tokens, num_classes: int, refuse: Refuse) -> Any:
        """The model, in float32."""
        import transformers  # takes seconds to import

        place = here_or_on_the_hub(self.path)
        if place is None:
            raise refuse(f"there is no {absolute(self.path)}, and no name on the Hub looks so")
        options = {"revision": self.revision, "trust_remote_code": False}
        kind: Any = transformers.AutoModelForCausalLM
        labels = {} if tokens.each else {"num_labels": num_classes}
        if not tokens.each:
            kind = transformers.AutoModelForSequenceClassification
        try:
            config = transformers.AutoConfig.from_pretrained(place, **options, **labels)
            config.use_cache = False
            if not self.pretrained:
                return kind.from_config(config, trust_remote_code=False).float()
            # A head for other classes starts afresh.
            return kind.from_pretrained(
                place, config=config, ignore_mismatched_sizes=not tokens.each, **options
            ).float()
        except Exception as error:  # whatever the network, damaged files or a model's classes raise
            raise refuse(
                f"cannot be read by `transformers` ({reason(error)}); give a directory that save_pretrained "
                "made, or a name on the Hub and a network"
            ) from error


@dataclass(frozen=True)
class _Mask:
    """Hook that tells a model which tokens are no padding; its parameters keep their names."""

    padding: int | None

    def __call__(
        self, model: nn.Module, inputs: tuple[Tensor], named: dict[str, Any]
    ) -> tuple[tuple[Tensor], dict[str, Any]] | None:
        if self.padding is None:
            return None
        (tokens,) = inputs
        return inputs, named | {"attention_mask": (tokens != self.padding).long()}


@dataclass(frozen=True)
class _Logits:
    """Hook that takes the logits out of what a model gives, and those of the tokens that there are."""

    classes: int

    def __call__(self, model: nn.Module, inputs: tuple[Tensor], outputs: Any) -> Tensor:
        return outputs.logits[..., : self.classes]


def _heads(model: Any) -> list[str]:
    """The layers of a classifier that are not in the model that all tasks share."""
    children = [name for name, part in model.named_children() if [*part.parameters()]]
    return [name for name in children if name != model.base_model_prefix]


def _usual_targets(model_type: str) -> list[str] | None:
    try:
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as usual
    except ImportError:
        return None  # `LoRA.add` says what is missing
    return usual.get(model_type)


def _check_causal(model: nn.Module, tokens: Tokens, refuse: Refuse) -> None:
    """ConfigError if the outputs at a position depend on later tokens, which are to be predicted."""
    model.eval()
    with torch.no_grad():
        first = torch.arange(tokens.length)[None] % tokens.vocabulary
        other = first.clone()
        other[:, -1] = (first[:, -1] + 1) % tokens.vocabulary
        before = slice(None, -1)
        mine, others = model(first)[:, before], model(other)[:, before]
        same = (mine - others).abs().max() <= 1e-6 * mine.abs().max()  # but for rounding
    if not same:
        raise refuse(
            "sees the tokens that it is to predict; take a causal model, such as GPT-2, or set is_decoder to "
            f"true in its {_CONFIG}"
        )


@contextlib.contextmanager
def _quiet(refuse: Refuse) -> Iterator[None]:
    """Keep the library from printing to the terminal; ConfigError if it is not installed."""
    try:
        from transformers.utils import logging
    except ImportError as error:
        raise refuse(
            "needs the package transformers; install it with `pip install 'rayfl[hf]'`"
        ) from error
    level, shows = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows:
            logging.enable_progress_bar()
