"""Weights that a model starts from, instead of random ones.

A state dict of tensors is read and nothing else: no file can run code. The layer that gives the logits
keeps its fresh start if the file has it for another number of classes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rayfl.errors import ConfigError, Refuse, first_line
from rayfl.models.base import Model
from rayfl.models.files import file_sha256, misfits, read_state_dict
from rayfl.text import absolute

TORCHVISION = "torchvision"


class FromFiles(ABC):
    """Base of the options of models that begin with what is in files."""

    @abstractmethod
    def content(self) -> dict[str, str | None]:
        """For options that name files their contents' SHA-256: the same weights wherever they lie."""


@dataclass(frozen=True, kw_only=True)
class Pretrainable(Model, FromFiles):
    """The options of models that may start from given weights."""

    name: ClassVar[str]
    published: ClassVar[str | None] = None  # the model in torchvision that has these weights

    pretrained: Annotated[
        str | None,
        Field(
            description="weights to start from: a state dict (.pt or .safetensors), or torchvision; a "
            "head for other classes starts afresh; null: random weights"
        ),
    ] = None
    download: Annotated[
        bool, Field(description="download torchvision's weights if its cache lacks them")
    ] = False

    def content(self) -> dict[str, str | None]:
        if self.pretrained is None or self.pretrained == TORCHVISION:
            return {}
        try:
            return {"pretrained": f"sha256:{file_sha256(absolute(self.pretrained))}"}
        except (OSError, ValueError):  # building the model says what is wrong with it
            return {}

    def load_pretrained(self, model: nn.Module, head: str) -> None:
        """Write the weights into `model`, whose logits come from the layer `head`.

        Raises ConfigError if there are none or they are those of another model.
        """
        if self.pretrained is None:
            return
        refuse = partial(ConfigError, key="model.pretrained", value=self.pretrained)
        is_published = self.pretrained == TORCHVISION
        given = (
            self._published(refuse)
            if is_published
            else read_state_dict(absolute(self.pretrained), refuse, f"'{TORCHVISION}' or null")
        )
        own = model.state_dict()
        for name in (f"{head}.weight", f"{head}.bias"):
            if name in given and name in own and len(given[name]) != len(own[name]):
                given[name] = own[name]
        findings = misfits(own, given)
        if findings:
            raise refuse(
                f"is no state dict of model.name = '{self.name}' with these options; it "
                f"{'; it '.join(findings)}; change the model's options, or take other weights",
                keys=("model.name",),
            )
        model.load_state_dict(given)

    def _published(self, refuse: Refuse) -> dict[str, Tensor]:
        from torchvision.models import get_model_weights  # slow to import

        if self.published is None:
            raise refuse(
                f"torchvision has no weights for model.name = '{self.name}'; give a file",
                keys=("model.name",),
            )
        weights: Any = get_model_weights(self.published)
        best = weights.DEFAULT
        cached = Path(torch.hub.get_dir()) / "checkpoints" / best.url.rpartition("/")[2]
        if not cached.exists() and not self.download:
            raise refuse(
                f"{cached} is not there; set model.download=true to download {best.url}, or put "
                "the file there",
                keys=("model.download",),
            )
        try:
            return dict(best.get_state_dict(check_hash=True, progress=False, weights_only=True))
        except Exception as error:  # whatever the network or a damaged file raises
            raise refuse(f"cannot be loaded ({first_line(error)})") from error
