"""The training loop: one for every objective, resumable to the bit on the CPU.

Every random choice of step t (batch order, augmentation, noise, attack starts) derives from the seed and t alone. A run
that is killed and resumed therefore repeats the steps after its last checkpoint exactly, and ends with the same weights.
"""

import contextlib
import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stalwart.attacks.guard import undisturbed
from stalwart.core.errors import FileError, TrainingError, UsageError
from stalwart.core.files import write_text
from stalwart.core.layout import channels_last
from stalwart.core.random import derive, generator, shard
from stalwart.core.tensors import save_tensors
from stalwart.data import Augment, Data, epoch_batches
from stalwart.models.param_ramp import initialise_ramps, lengthen, ramps, set_slope
from stalwart.objectives import Moment, Objective, Trainee
from stalwart.spiking.neurons import raise_thresholds
from stalwart.training import checkpoint
from stalwart.training.checkpoint import Progress
from stalwart.training.clipping import clip_weights
from stalwart.training.config import Training
from stalwart.training.distributed import Ranks
from stalwart.training.optimisers import build_optimiser, load_optimiser, optimiser_tensors
from stalwart.training.schedules import factor
from stalwart.training.validation import validate

Report = Callable[[dict[str, Any]], None]
_WATCHED = 512


@dataclass
class Fit:
    """One training run: ``run()`` trains the model in place and leaves the selected weights in it.

    Args:
        model: maps [B, ...] to logits [B, K]; on ``ranks.device``.
        objective: what to minimise.
        data: training and validation parts.
        config: epochs, optimiser, schedule, selection.
        folder: where ``metrics.jsonl``, ``checkpoint/`` and ``model.safetensors`` go.
        seed: root of all randomness.
        augment: applied to each training batch.
        ranks: this process among the data-parallel ones.
        fingerprint: identifies the recipe, so that a checkpoint is never resumed under another one.
        advance: called with (batches done in all epochs, note) for a progress bar.
        announce: called with each finished epoch's metrics.
    """

    model: nn.Module
    objective: Objective
    data: Data
    config: Training
    folder: Path
    seed: int = 0
    augment: Augment = field(default_factory=Augment)
    ranks: Ranks = field(default_factory=Ranks)
    fingerprint: str = ""
    advance: Callable[[int, str], None] = lambda done, note: None
    announce: Report = lambda metrics: None

    def __post_init__(self) -> None:
        if self.config.channels_last and len(self.data.shape) == 3:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        train = self.data.train if self.config.limit is None else self.data.train.take(self.config.limit)
        self.train, self.validation = train.to(self.ranks.device), self.data.validation.to(self.ranks.device)
        if not len(self.validation) and (self.config.criterion != "last" or self.config.validation):
            raise UsageError(
                "the data have no validation samples to select weights by; hold some out, or set training.select: last."
            )
        self._clip(self.model)
        self.trainee: nn.Module = Trainee(self.model, self.objective)
        if self.ranks.world > 1:
            ids = [self.ranks.device.index] if self.ranks.device.type == "cuda" else None
            self.trainee = DistributedDataParallel(self.trainee, device_ids=ids)
        self.optimiser = build_optimiser(self.config.optimiser, self.model)
        self.average = copy.deepcopy(self.model).requires_grad_(False) if self.config.ema else None
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}

    @property
    def candidate(self) -> nn.Module:
        """The weights that are validated and handed on: the moving average where there is one."""
        return self.average or self.model

    def run(self, resume: bool = False) -> Progress:
        """Train to the end and return where the run stands.

        Args:
            resume: go on from the folder's checkpoint; without one, start from the beginning.

        Raises:
            TrainingError: the loss stopped being finite.
            FileError: the checkpoint is damaged or belongs to another recipe, or the folder cannot be written.
        """
        here = float(checkpoint.path_of(self.folder).exists())
        if self.ranks.agree([here]) != [here]:
            raise FileError(f"{checkpoint.path_of(self.folder)} is not the same on every process; use a shared folder.")
        if resume and here:
            self._restore()
        while self.progress.epoch < self.config.epochs and not self.progress.stopped:
            self._epoch()
        self.candidate.load_state_dict(self.best)
        self.model.load_state_dict(self.best)
        if self.ranks.first:
            self._write_metrics()  # a kill may have come between the last checkpoint and its metrics
            meta = {"epoch": self.progress.best_epoch, "selected_by": self.config.criterion}
            save_tensors(self.folder / "model.safetensors", self.best, meta)
        return self.progress

    def _epoch(self) -> None:
        now = self.progress
        batches = epoch_batches(
            len(self.train), self.config.batch_size, self.seed, now.epoch, self.ranks.rank, self.ranks.world
        )
        started, saved = time.monotonic() - now.seconds, time.monotonic()
        if now.batch == 0:
            self._switch_ramps()
        self.trainee.train()
        while now.batch < len(batches):
            self._step(batches[now.batch], now.batch / len(batches))
            if time.monotonic() - saved >= self.config.checkpoint_seconds and now.batch < len(batches):
                now.seconds, saved = time.monotonic() - started, time.monotonic()
                self._save()
            self.advance(now.epoch * len(batches) + now.batch, f"epoch {now.epoch + 1}/{self.config.epochs}")
        now.seconds = time.monotonic() - started
        self._finish_epoch()

    def _switch_ramps(self) -> None:
        """Switch ParamRamps on at the epoch asked for, at lengths measured on the training set as it is."""
        waiting = [ramp for ramp in ramps(self.model).values() if not ramp.on]
        if waiting and self.progress.epoch >= self.config.ramps.switch_on:
            initialise_ramps(self.model, (x for x, _ in self.train.loader(self.config.batch_size)))

    def _step(self, index: Tensor, share: float) -> None:
        now, device = self.progress, self.ranks.device
        moment = Moment(derive(self.seed, "step", now.step), now.epoch, share)
        x, y = self.train.batch(index)
        x = (
            self.augment(x, generator(self.seed, "augment", now.step, device=device))
            if self.augment != Augment()
            else x
        )
        if self.config.channels_last and x.dim() == 4:
            x = channels_last(x)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.optimiser.lr * factor(self.config.schedule, moment.time, self.config.epochs)
        if self.config.ramps.slope is not None:
            set_slope(self.model, self.config.ramps.slope.at(moment.time))
        for part in range(self.objective.updates):
            # The last update's loss and predictions are those that count.
            loss, correct = self._update(x, y, dataclasses.replace(moment, part=part))
        sums = self.ranks.sum(
            torch.stack([loss.detach().double() * len(y), correct.double(), correct.new_tensor(len(y)).double()])
        )
        if not math.isfinite(float(sums[0])):
            raise TrainingError(
                f"the loss became {float(loss.detach())} at step {now.step} (epoch {now.epoch + 1}); lower the learning "
                "rate or clip gradients (optimiser.clip). Checkpoints written so far are kept."
            )
        now.loss, now.correct, now.seen = (
            old + float(new) for old, new in zip((now.loss, now.correct, now.seen), sums, strict=True)
        )
        now.batch += 1
        now.step += 1

    def _update(self, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        self.optimiser.zero_grad(set_to_none=True)
        with self._autocast():
            loss, correct = self.trainee(x, y, moment)
        loss.backward()
        if self.config.optimiser.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimiser.clip)
        self.optimiser.step()
        self.objective.after_step(self.model, moment)
        lengthen(self.model)
        raise_thresholds(self.model)
        self._clip(self.model)
        if self.average is not None:
            self._update_average()
            self._clip(self.average)
        return loss, correct

    def _clip(self, model: nn.Module) -> None:
        if self.config.clip_weights is not None:
            clip_weights(model, self.config.clip_weights)

    def _finish_epoch(self) -> None:
        now = self.progress
        with shard(0, 1):  # every process validates on all samples, so it draws what a single one draws
            found = validate(self.candidate, self.validation, self.config.validation, derive(self.seed, "validation"))
        names = list(found)
        found = dict(zip(names, self.ranks.agree([found[name] for name in names]), strict=True))
        metrics = {
            "epoch": now.epoch + 1,
            "step": now.step,
            "lr": self.optimiser.param_groups[0]["lr"],
            "seconds": round(now.seconds, 3),
            "train_loss": now.loss / now.seen,
            "train_accuracy": now.correct / now.seen,
            **found,
        }
        fell = self._watch(metrics)
        if not fell:
            self._select(metrics)
        now.history.append(metrics)
        now.epoch, now.batch, now.loss, now.correct, now.seen, now.seconds = now.epoch + 1, 0, 0.0, 0.0, 0.0, 0.0
        self._save()
        self.announce(metrics)

    def _select(self, metrics: dict[str, Any]) -> None:
        key = {
            "certified": "validation_certified_accuracy",
            "robust": "validation_robust_accuracy",
            "clean": "validation_accuracy",
        }.get(self.config.criterion)
        score = float(metrics[key]) if key else math.inf
        if key is None or score > self.progress.best:
            self.progress.best, self.progress.best_epoch = (score if key else 0.0), metrics["epoch"]
            self.best = {name: tensor.detach().clone() for name, tensor in self.candidate.state_dict().items()}

    def _watch(self, metrics: dict[str, Any]) -> bool:
        """Measure the objective's watch, if it has one; return whether it fell, so that training stops.

        The run then hands on the weights selected before the fall.
        """
        watch = getattr(self.objective, "watch", None)
        if watch is None:
            return False
        now = self.progress
        # The same samples every epoch: a fresh small batch would fluctuate by as much as the fall it looks for.
        x, y = self.train.batch(slice(0, _WATCHED))
        seed = derive(self.seed, "watch")
        with shard(0, 1), undisturbed(self.model, seed):
            accuracy = watch(self.model, x, y, Moment(seed, now.epoch))
        (accuracy,) = self.ranks.agree([accuracy])
        metrics["watched_accuracy"] = accuracy
        if now.watched is not None and now.watched - accuracy > self.objective.fall:  # type: ignore[attr-defined]
            now.stopped = f"catastrophic overfitting: watched accuracy fell from {now.watched:.3f} to {accuracy:.3f}"
            metrics["stopped"] = now.stopped
            return True
        now.watched = accuracy
        return False

    def _update_average(self) -> None:
        assert self.average is not None
        decay = self.config.ema
        with torch.no_grad():
            for own, new in zip(self.average.parameters(), self.model.parameters(), strict=True):
                own.lerp_(new.detach(), 1 - decay)
            for kept, fresh in zip(self.average.buffers(), self.model.buffers(), strict=True):
                kept.copy_(fresh)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.amp and self.ranks.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _save(self) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise TrainingError(
                f"the weights stopped being finite by step {self.progress.step}; lower the learning rate or clip gradients "
                "(optimiser.clip). Checkpoints written so far are kept."
            )
        if not self.ranks.first:
            return
        parts = {
            "model": self.model.state_dict(),
            "optimiser": optimiser_tensors(self.optimiser),
            "best": self.best,
        }
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        checkpoint.save(self.folder, parts, self.progress, self.fingerprint)
        self._write_metrics()

    def _write_metrics(self) -> None:
        lines = "".join(json.dumps(line, allow_nan=False) + "\n" for line in self.progress.history)
        write_text(self.folder / "metrics.jsonl", lines)

    def _restore(self) -> None:
        parts, self.progress = checkpoint.load(self.folder, self.fingerprint)
        self.model.load_state_dict(parts["model"])
        load_optimiser(self.optimiser, parts.get("optimiser", {}))
        device = self.ranks.device
        self.best = {name: tensor.to(device) for name, tensor in parts.get("best", {}).items()}
        if self.average is not None:
            self.average.load_state_dict(parts["average"])
