"""Accuracy of many chips."""

import contextlib
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from stalwart.core.checks import check_labels, check_logits
from stalwart.core.crew import crew, in_order
from stalwart.core.errors import FileError, InputError
from stalwart.core.layout import channels_last
from stalwart.core.modes import evaluating
from stalwart.core.noise import noise
from stalwart.core.numbers import require
from stalwart.core.progress import Advance, silent
from stalwart.core.random import derive
from stalwart.core.tensors import fingerprint, load_tensors, save_tensors
from stalwart.hardware.base import Hardware
from stalwart.hardware.chip import Chip

_SAVE_EVERY = 2.0


def accuracies(
    model: nn.Module,
    device: Hardware,
    x: Tensor,
    y: Tensor,
    chips: int,
    seed: int,
    batch: int = 250,
    path: Path | str | None = None,
    advance: Advance = silent,
) -> Tensor:
    """Return the accuracy of each of ``chips`` chips of a device, float64 [chips].

    Chip i is the same whatever the number of chips and whatever else is computed. What is read with noise is drawn anew for
    each batch, so those numbers belong to a batch size. A tie of logits is an error of the model. The model is evaluated in
    evaluation mode and left as it was.

    Args:
        model: [B, ...] to logits [B, K].
        device: a fault or a chain.
        x: inputs [N, ...].
        y: labels [N].
        chips: how many, at least 1.
        seed: of the first; the others follow from it.
        batch: inputs at a time; near 250 the activations of small networks stay in the cache.
        path: a safetensors file that keeps what is done: the same call goes on after a kill, or with more chips.
        advance: told how many chips are done.

    Raises:
        InputError: no inputs, labels or logits that do not fit, a fault that must change parameters changed none, or one on
            layers does not reach some of them.
        UsageError: chips or batch out of range, or parameters that do not exist.
        FileError: ``path`` is damaged or holds another experiment.
    """
    require(chips >= 1, f"chips must be at least 1, got {chips}.")
    require(batch >= 1, f"batch must be at least 1, got {batch}.")
    if not len(x):
        raise InputError("there are no inputs to measure an accuracy on.")
    check_labels(y, len(x))
    # Laid out once for all chips: convolutions read their first input fastest so.
    parts = [channels_last(part) if part.dim() == 4 else part for part in x.split(batch)]
    batches = list(zip(parts, y.split(batch), strict=True))
    identity = "" if path is None else fingerprint(model, x, y, repr(device), f"{seed}/{batch}")
    found = _done(path, identity)[:chips]
    saved = time.monotonic()

    def judge(one: nn.Module, number: int) -> float:
        root = derive(seed, "chip", number)
        with torch.no_grad(), device.chip(one, root), noise(one, seed=root):
            return int(sum(_right(one, *pair) for pair in batches)) / len(x)

    with evaluating(model), torch.no_grad():
        one = derive(seed, "chip", 0)
        with noise(model, seed=one):
            if not found:
                _check_changed(device.chip(model, one))
                _check_called(model, device, batches[0][0][:1])
            models = crew(model, batches[0][0][:1], chips - len(found))
        with contextlib.closing(in_order(judge, models, range(len(found), chips))) as results:
            for accuracy in results:
                found.append(accuracy)
                advance(len(found))
                if path is not None and (len(found) == chips or time.monotonic() - saved > _SAVE_EVERY):
                    save_tensors(path, {"accuracies": torch.tensor(found, dtype=torch.float64)}, identity)
                    saved = time.monotonic()
    return torch.tensor(found, dtype=torch.float64)


def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return how many labels have strictly the largest logit."""
    logits = model(x)
    check_logits(logits, len(x))
    check_labels(y, len(x), logits.shape[1])
    own = logits.gather(1, y.long().unsqueeze(1))
    return (own > logits.scatter(1, y.long().unsqueeze(1), -torch.inf).amax(1, keepdim=True)).sum()


def _check_changed(chip: Chip) -> None:
    for fault in chip.unmoved():
        raise InputError(
            f"a chip with this fault has the same parameters as the model: {fault.describe()}. Its accuracy would say "
            "nothing about the fault; are all those parameters zero, or so small that they round to what they were?"
        )


def _check_called(model: nn.Module, device: Hardware, x: Tensor) -> None:
    for fault in device.faults:
        missed = fault.missed(model, x)
        if missed:
            raise InputError(
                f"the model uses {', '.join(missed)} without calling them as layers, so this fault does not reach them: "
                f"{fault.describe()}. Choose other layers with only=."
            )


def _done(path: Path | str | None, identity: str) -> list[float]:
    if path is None or not Path(path).exists():
        return []
    tensors, meta = load_tensors(path, "the accuracies of chips")
    if meta != identity or "accuracies" not in tensors:
        raise FileError(
            f"{path} holds the accuracies of another model, device, seed, batch size or other data; delete it or choose "
            "another file."
        )
    return tensors["accuracies"].tolist()
