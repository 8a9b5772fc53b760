"""Hyper-parameters that several methods share, with their bounds."""

from typing import Annotated

from pydantic import Field

Rho = Annotated[float, Field(ge=0, description="radius of the perturbation")]
ServerLR = Annotated[float, Field(gt=0, description="server learning rate")]
Momentum = Annotated[float, Field(ge=0, lt=1, description="server momentum")]
LocalWeight = Annotated[float, Field(gt=0, le=1, description="weight of the local gradient")]
Decay1 = Annotated[float, Field(ge=0, lt=1, description="decay of the first moment")]
Decay2 = Annotated[float, Field(ge=0, lt=1, description="decay of the second moment")]
