"""What ``stalwart convert`` does: a run or a foreign network as spikes, as an ONNX file, as a NIR file."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import stalwart as sw
from stalwart.convert import compare
from stalwart.convert.pipeline import INPUTS
from stalwart.core.errors import UsageError
from stalwart.core.files import require_writable, write_text
from stalwart.core.numbers import require
from stalwart.core.tensors import save_tensors
from stalwart.interchange import write_nir, write_onnx
from stalwart.recipes import runs
from stalwart.recipes.conversions import COMPARED
from stalwart.recipes.foreign import foreign_model
from stalwart.recipes.load import override, parse_recipe
from stalwart.spiking import spiking_networks

FORMS = ("snn", "nir", "onnx")
_SHOWN = 8


@dataclass(frozen=True)
class Wish:
    """What the command line asks for; None leaves a default.

    Attributes:
        to: one of :data:`FORMS`.
        method, steps, encoder, max_pool: of a conversion to spikes.
        lossy: what a NIR file may lose, separated by commas.
        words: options of the method, ``key=value``.
    """

    to: str
    method: str | None = None
    steps: int | None = None
    encoder: str | None = None
    max_pool: str | None = None
    lossy: str | None = None
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.to in FORMS, f"a network is converted --to {', '.join(FORMS)}, not '{self.to}'.")
        given = [self.method, self.steps, self.encoder, self.max_pool]
        require(
            self.to == "snn" or not (any(one is not None for one in given) or self.words),
            f"--method, --steps, --encoder, --max-pool and key=value belong to --to snn, not to --to {self.to}.",
        )
        require(self.lossy is None or self.to == "nir", "--lossy belongs to --to nir.")

    @property
    def section(self) -> dict[str, Any]:
        """The recipe's ``conversion`` section, without a source."""
        section: dict[str, Any] = {"method": {"name": self.method or "rate"}, "steps": self.steps or 8}
        for word in self.words:
            override(section["method"], word)
        if self.encoder is not None:
            section["encoder"] = {"name": self.encoder}
        if self.max_pool is not None:
            section["max_pool"] = self.max_pool
        return section


def convert_run(folder: Path, wish: Wish, source: runs.Source, out: Path | None) -> str:
    """Convert a run's network and return what is to be printed."""
    recipe = runs.read_recipe(folder)
    if wish.to != "snn":
        _, model, data = runs.load_run(folder, source)
        x, _ = data.test.take(_SHOWN).batch(slice(None))
        return _written(model, x, wish, out or folder / f"model.{wish.to}")
    if recipe.conversion is not None or recipe.model.spiking is not None:
        raise UsageError(
            f"{folder} holds a spiking network already; write it for other tools with --to nir or --to onnx."
        )
    target = out or folder.parent / f"{recipe.name}-snn"
    values = recipe.model_dump(mode="json")
    values |= {
        "name": target.name,
        "description": f"{recipe.name} as a spiking network, not trained further",
        "conversion": {"source": os.path.relpath(folder.resolve(), target.resolve()), **wish.section},
        "objective": {"name": "natural"},
        "training": {"epochs": 0},
        "evaluation": recipe.evaluation.model_dump(mode="json") | {"suite": "spiking", "certify": None},
    }
    runs.train(parse_recipe(values, f"of {target.name}"), target, source, device="cpu")
    return f"converted: {target / 'model.safetensors'}\nnext: stalwart evaluate {target}"


def convert_foreign(
    path: str, weights: Path | None, dataset: str | None, wish: Wish, source: runs.Source, out: Path | None
) -> str:
    """Convert a foreign network and return what is to be printed."""
    if dataset is None:
        raise UsageError("a foreign model needs --dataset, such as cifar10, a .npz file or a folder of images.")
    model, data = foreign_model(path, weights), source.named(dataset)
    name = path.replace(":", "-")
    if wish.to != "snn":
        x, _ = data.test.take(_SHOWN).batch(slice(None))
        return _written(model, x, wish, out or Path("runs") / f"{name}.{wish.to}")
    folder = out or Path("runs") / f"{name}-snn"
    require_writable(folder)
    seen, _ = data.train.take(INPUTS).batch(slice(None))
    x, y = (data.validation if len(data.validation) else data.test).take(COMPARED).batch(slice(None))
    section = wish.section
    method = section.pop("method")
    network = sw.convert(model, seen, method=method.pop("name"), **method, **section)
    found = compare(model, network, x, y)
    save_tensors(folder / "model.safetensors", dict(network.state_dict()), wish.section)
    write_text(folder / "conversion.json", json.dumps({"conversion": wish.section, **found.record()}, indent=1))
    return "\n".join((found.text(), f"weights: {folder / 'model.safetensors'}, for the network that sw.convert makes"))


def _written(model: nn.Module, x: Tensor, wish: Wish, path: Path) -> str:
    with torch.no_grad():
        if wish.to == "onnx":
            found = write_onnx(model.eval(), x, path)
            return f"{path}: computes the same in onnxruntime, up to {found:.2g} of the outputs' size"
        if not spiking_networks(model):
            raise UsageError("NIR describes spiking networks; convert this one --to snn first, and then that --to nir.")
        lossy = tuple(one.strip() for one in (wish.lossy or "").split(",") if one.strip())
        found = write_nir(model.eval(), x, path, allow_lossy=lossy)
        return f"{path}: sends the same spikes when executed, outputs up to {found:.2g} of their size"
