"""How a run is trained: the records that a recipe's ``training`` section is parsed into."""

from typing import Any, Literal

import pydantic

from stalwart.core.numbers import Number


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


class Validation(Settings):
    """The attack that validation accuracy is measured under, on the first ``samples`` validation inputs."""

    attack: str = "pgd"
    options: dict[str, Any] = {}
    norm: Literal["linf", "l2"] = "linf"
    eps: Number = pydantic.Field(ge=0)
    samples: int = pydantic.Field(500, ge=1)


class Training(Settings):
    """All that the training loop needs beside the model, the data and the objective.

    Attributes:
        select: which weights the run hands on: "robust" (best validation accuracy under attack, the default where
            ``validation`` is given), "clean" (best clean validation accuracy) or "last".
        ema: decay of the exponential moving average of the weights, 0 for none; it is what is validated and handed on.
        amp: bfloat16 autocast, on a GPU only.
        checkpoint_seconds: time between two checkpoints within an epoch.
    """

    epochs: int = pydantic.Field(10, ge=1)
    batch_size: int = pydantic.Field(128, ge=1)
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    validation: Validation | None = None
    select: Literal["robust", "clean", "last"] | None = None
    ema: Number = pydantic.Field(0.0, ge=0, lt=1)
    amp: bool = False
    channels_last: bool = True
    checkpoint_seconds: Number = pydantic.Field(60.0, ge=0)
    limit: int | None = pydantic.Field(None, ge=1, description="train on the first so many samples only")

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "Training":
        if self.select == "robust" and self.validation is None:
            raise ValueError("select 'robust' needs a validation section with an attack and its eps")
        return self

    @property
    def criterion(self) -> Literal["robust", "clean", "last"]:
        """What the handed-on weights are selected by, defaults resolved."""
        return self.select or ("robust" if self.validation else "clean")
