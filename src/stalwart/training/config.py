"""How a run is trained: the records that a recipe's ``training`` section is parsed into."""

from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from stalwart.core.numbers import Number
from stalwart.objectives.schedules import Anneal


class Settings(pydantic.BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Optimiser(Settings):
    """Which optimiser, and what it decays.

    Attributes:
        decay: "all" parameters take ``weight_decay``; "head" those of the classifier's head and its noise only, as
            WCA asks; "weights" those of two or more dimensions. The strength of injected weight noise never decays.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Number = pydantic.Field(1e-3, gt=0)
    momentum: Number = pydantic.Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: Number = pydantic.Field(0.0, ge=0)
    decay: Literal["all", "head", "weights"] = "all"
    clip: Number | None = pydantic.Field(None, gt=0)


class Schedule(Settings):
    """The learning rate over the run, as a factor on the optimiser's ``lr``.

    Attributes:
        name: "constant"; "cosine" to 0; "step", times ``gamma`` at each of ``milestones`` (epochs); "cyclic", from 0 up to
            1 at the share ``peak`` of the run and down to 0.
        warmup: epochs of linear warm-up from 0, for any schedule but cyclic.
    """

    name: Literal["constant", "cosine", "step", "cyclic"] = "constant"
    milestones: tuple[Number, ...] = ()
    gamma: Number = pydantic.Field(0.1, gt=0, le=1)
    peak: Number = pydantic.Field(0.4, gt=0, lt=1)
    warmup: Number = pydantic.Field(0.0, ge=0)

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "Schedule":
        if self.name == "step" and not self.milestones:
            raise ValueError("the 'step' schedule needs milestones, such as [10, 15]")
        if self.name != "step" and self.milestones:
            raise ValueError(f"milestones belong to the 'step' schedule, not to '{self.name}'")
        return self


class Ramps(Settings):
    """How a model with ParamRamps is trained (Lyu et al., CVPR 2021); without them this changes nothing.

    Attributes:
        switch_on: epoch before which they are leaky ReLUs; then each takes its neuron's mean activation over the training
            set as its length. Beyond the run they stay leaky ReLUs.
        slope: how the slope outside the ramp changes, such as {start: 0.01, end: 0, begin: 70, over: 70, shape: smooth}.
    """

    switch_on: Number = pydantic.Field(1.0, ge=0)
    slope: Anneal | None = None


class ClipWeights(Settings):
    """What weights are clipped to at the start and after each step of the optimiser; a number alone is ``limit``.

        limit:   W <- min(max(W, -limit), limit)
        sigmas:  W <- min(max(W, mean - sigmas std), mean + sigmas std)     mean and std over the tensor, before the clip

    Source: limit: Stutz et al., "Bit error robustness for energy-efficient DNN accelerators", MLSys 2021 (arXiv 2006.13977),
    section 4.2, where 0.1 is typical; sigmas: Joshi et al., "Accurate deep neural network inference using computational
    phase-change memory", 2020, where it is 2.

    Attributes:
        limit: in units of the weights.
        sigmas: in standard deviations of each tensor, its entries taken for the whole population.
        only: glob patterns of parameters; without one, weight matrices and kernels, for ``limit`` the biases beside them too.
    """

    limit: Number | None = pydantic.Field(None, gt=0)
    sigmas: Number | None = pydantic.Field(None, gt=0)
    only: str | tuple[str, ...] = ()

    @pydantic.model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping | ClipWeights) else {"limit": value}

    @pydantic.model_validator(mode="after")
    def _one_of_both(self) -> "ClipWeights":
        if (self.limit is None) == (self.sigmas is None):
            raise ValueError("clip_weights needs either a limit, such as 0.1, or sigmas, such as 2")
        return self


class Validation(Settings):
    """What else is measured on the first ``samples`` validation inputs: accuracy under attack, certified accuracy.

    Attributes:
        attack: registered name; null for none.
        options: its hyper-parameters.
        certify: bounding method that certified accuracy is measured by, such as "ibp" or "crown-ibp"; null for not at all.
            Each activation's share of dead and of unstable neurons is measured with it.
    """

    attack: str | None = "pgd"
    options: dict[str, Any] = {}
    certify: str | None = None
    norm: Literal["linf", "l2"] = "linf"
    eps: Number = pydantic.Field(ge=0)
    samples: int = pydantic.Field(500, ge=1)


class Training(Settings):
    """All that the training loop needs beside the model, the data and the objective.

    Attributes:
        select: which weights the run hands on: "certified" (best certified validation accuracy, the default where
            ``validation`` certifies), "robust" (best under attack, the default where it only attacks), "clean" (best clean
            validation accuracy) or "last".
        ema: decay of the exponential moving average of the weights, 0 for none; it is what is validated and handed on.
        clip_weights: the range that weights are held in, see :class:`ClipWeights`; null for none.
        amp: bfloat16 autocast, on a GPU only.
        checkpoint_seconds: time between two checkpoints within an epoch.
    """

    epochs: int = pydantic.Field(10, ge=0)
    batch_size: int = pydantic.Field(128, ge=1)
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    validation: Validation | None = None
    ramps: Ramps = Ramps()
    select: Literal["certified", "robust", "clean", "last"] | None = None
    ema: Number = pydantic.Field(0.0, ge=0, lt=1)
    clip_weights: ClipWeights | None = None
    amp: bool = False
    channels_last: bool = True
    checkpoint_seconds: Number = pydantic.Field(60.0, ge=0)
    limit: int | None = pydantic.Field(None, ge=1, description="train on the first so many samples only")

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "Training":
        if self.select == "robust" and (self.validation is None or self.validation.attack is None):
            raise ValueError("select 'robust' needs a validation section with an attack and its eps")
        if self.select == "certified" and (self.validation is None or self.validation.certify is None):
            raise ValueError("select 'certified' needs a validation section with certify and eps")
        return self

    @property
    def criterion(self) -> Literal["certified", "robust", "clean", "last"]:
        """What the handed-on weights are selected by, defaults resolved."""
        if self.select or self.validation is None:
            return self.select or "clean"
        return "certified" if self.validation.certify else "robust" if self.validation.attack else "clean"
