"""What a recipe says: data, model, objective, training and evaluation of one run, complete with its seed."""

from typing import Annotated, Any, Literal

import pydantic

from stalwart.attacks import Attack
from stalwart.attacks.table import ATTACKS
from stalwart.bounds.lines import Strategy
from stalwart.bounds.methods import find_method
from stalwart.certify.dataset import COMPLETE
from stalwart.convert.method import Method
from stalwart.convert.prepare import MaxPooling
from stalwart.convert.table import METHODS
from stalwart.core.numbers import Number, require
from stalwart.core.registry import build, lookup
from stalwart.data import Augment
from stalwart.data.table import DATASETS
from stalwart.evaluation.corruptions import check_severities
from stalwart.evaluation.suites import SUITES
from stalwart.models.spiking import Spiking
from stalwart.models.table import MODELS
from stalwart.objectives.table import OBJECTIVES
from stalwart.spiking import make_encoder
from stalwart.spiking.qcfs import Quantise
from stalwart.stochastic.table import NOISES
from stalwart.training import Training
from stalwart.training.config import Settings


class Choice(pydantic.BaseModel):
    """A registered name with its hyper-parameters written beside it: ``{name: pgd-at, eps: 8/255}``."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The hyper-parameters."""
        return dict(self.model_extra or {})


class DataSection(Choice):
    """Which data, and how training batches are augmented."""

    augment: dict[str, Any] = {}


class ModelSection(Choice):
    """Which architecture, its normalisation (layer 0), its initial weights and its noise.

    Attributes:
        quantise: levels and height of quantised activations in the place of its ReLUs, see
            :class:`stalwart.spiking.qcfs.Quantise`; none by default.
        spiking: which neurons take the place of its ReLUs, see :class:`stalwart.models.spiking.Spiking`; none by default.
        init: "default", as PyTorch draws them, or "ibp", see :func:`stalwart.models.initialise.ibp_initialise`, or, on
            spiking models, "fluctuation" with the section's xi, see :func:`stalwart.spiking.fluctuation_init`, measured on the
            first training inputs.
    """

    init: Literal["default", "ibp", "fluctuation"] = "default"
    mean: list[Number] | None = None
    std: list[Number] | None = None
    noise: Choice | None = None
    quantise: dict[str, Any] | None = None
    spiking: dict[str, Any] | None = None

    @property
    def neurons(self) -> Spiking | None:
        """The neurons of a spiking model."""
        if self.spiking is None:
            return None
        found: Spiking = build("option of", {"spiking": "stalwart.models.spiking:Spiking"}, "spiking", self.spiking)
        return found

    @property
    def quantised(self) -> Quantise | None:
        """The activations of a model that is trained to be converted."""
        if self.quantise is None:
            return None
        found: Quantise = build("option of", {"quantise": "stalwart.spiking.qcfs:Quantise"}, "quantise", self.quantise)
        return found


class ConversionSection(Settings):
    """From which network a spiking one is made, and how, before it is trained further or not at all.

    Attributes:
        source: folder of the run whose network is converted, seen from this run's folder; data and model sections are its.
        method: a name of :data:`stalwart.convert.METHODS` with its hyper-parameters.
        steps: T, time steps for one input.
        encoder: a name of :data:`stalwart.spiking.ENCODERS` with its options.
        max_pool: "refuse", or "spikes" for the largest spike of each step.
    """

    source: str
    method: Choice = Choice(name="rate")
    steps: int = pydantic.Field(8, ge=1)
    encoder: Choice = Choice(name="direct")
    max_pool: MaxPooling = "refuse"

    @property
    def chosen(self) -> Method:
        """The method."""
        found: Method = build("method of conversion", METHODS, self.method.name, self.method.options)
        return found


class CertifySection(Settings):
    """How the run is certified, on inputs that the evaluation attacks and at its radii.

    Attributes:
        methods: bounding methods, and perhaps "branch-and-bound".
        samples: the first so many of the evaluated inputs, or all.
        strategy: lines of piecewise-linear functions: "tight" for certifiably trained networks, "adaptive" for others.
        timeout: seconds for the complete verification of one input.
    """

    methods: tuple[str, ...] = pydantic.Field(("ibp", "crown-ibp", "alpha-crown"), min_length=1)
    samples: int | None = pydantic.Field(200, ge=1)
    strategy: Strategy = "tight"
    timeout: Number = pydantic.Field(10.0, gt=0)

    @pydantic.field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for name in methods:
            if name != COMPLETE:
                find_method(name)
        return methods


class EvaluationSection(Settings):
    """What the run is judged by.

    Attributes:
        samples: the first so many test inputs, or all.
        rule: decision rule of a randomised model for the headline numbers.
        curve: further radii for the accuracy curve.
        certify: how it is certified; not at all by default.
        chips: of each imperfect processor; by default what the suite measures, 25 of "hardware" and none of others.
        corruptions: severities, 1 to 5, of common corruptions; by default what the suite measures, all of "corruptions" and
            none of others.
        batch_size: inputs attacked together, which results depend on; by default as many as suit the model.
    """

    suite: str = "standard"
    norm: Literal["linf", "l2", "l1", "l0", "events"] = "linf"
    eps: Number = pydantic.Field(8 / 255, ge=0)
    samples: int | None = pydantic.Field(1000, ge=1)
    rule: Literal["single", "mean-softmax", "mean-network"] = "single"
    curve: tuple[Annotated[Number, pydantic.Field(ge=0)], ...] = ()
    certify: CertifySection | None = None
    chips: int | None = pydantic.Field(None, ge=0)
    corruptions: tuple[int, ...] | None = None

    @pydantic.field_validator("corruptions")
    @classmethod
    def _severities(cls, severities: tuple[int, ...] | None) -> tuple[int, ...] | None:
        check_severities(severities or ())
        return severities

    batch_size: int | None = pydantic.Field(None, ge=1)


class Recipe(Settings):
    """One run, complete. Whoever has the recipe and the data can repeat it."""

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    description: str = ""
    seed: int = pydantic.Field(0, ge=0)
    data: DataSection
    model: ModelSection
    conversion: ConversionSection | None = None
    objective: Choice = Choice(name="natural")
    training: Training = Training()
    evaluation: EvaluationSection = EvaluationSection()

    @pydantic.model_validator(mode="after")
    def _buildable(self) -> "Recipe":
        # Every name and option is checked here, before any long work starts.
        build("dataset", DATASETS, self.data.name, self.data.options)
        build("model", MODELS, self.model.name, self.model.options)
        build("objective", OBJECTIVES, self.objective.name, self.objective.options)
        neurons, quantise = self.model.neurons, self.model.quantised
        if self.conversion is not None:
            _ = self.conversion.chosen
            make_encoder(self.conversion.encoder.model_dump(), self.conversion.steps)
            require(
                neurons is None,
                "a model that is spiking already is not converted; leave out 'spiking' or 'conversion'.",
            )
        require(
            self.training.epochs > 0 or self.conversion is not None,
            "training.epochs must be at least 1; only a converted network works without training.",
        )
        require(
            quantise is None or neurons is None,
            "a spiking model has no activations to quantise; leave out one of both.",
        )
        _ = self.augment
        require(
            self.model.init != "fluctuation" or neurons is not None,
            "the initialisation 'fluctuation' is one of spiking networks; give the model a spiking section.",
        )
        if self.model.noise is not None:
            build("noise", NOISES, self.model.noise.name, self.model.noise.options)
        if self.training.validation is not None and self.training.validation.attack is not None:
            found = build("attack", ATTACKS, self.training.validation.attack, self.training.validation.options)
            require(
                isinstance(found, Attack),
                f"validation attacks inputs, and '{self.training.validation.attack}' attacks weights; take one such as 'pgd'.",
            )
        if self.training.validation is not None and self.training.validation.certify is not None:
            find_method(self.training.validation.certify)
        lookup("suite", SUITES, self.evaluation.suite)
        return self

    @property
    def augment(self) -> Augment:
        """The augmentation of training batches."""
        found: Augment = build("option of", {"augment": "stalwart.data.augment:Augment"}, "augment", self.data.augment)
        return found
