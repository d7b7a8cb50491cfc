"""Floor 2: architectures, each with its normalisation as layer 0: normalise -> backbone -> head."""

from stalwart.models.build import build_model
from stalwart.models.classifier import Classifier, Normalise
from stalwart.models.table import MODELS

__all__ = ["MODELS", "Classifier", "Normalise", "build_model"]
