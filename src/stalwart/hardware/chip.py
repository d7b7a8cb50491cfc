"""A model that is one chip for the length of a block, and itself again afterwards, bit for bit."""

import contextlib
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from stalwart.core.errors import UsageError
from stalwart.core.random import generator
from stalwart.hardware.base import Fault, Hardware, Reader, streams
from stalwart.hardware.names import draw_seed, key, offered


class Chip(contextlib.AbstractContextManager["Chip"]):
    """One device with a model's parameters, programmed when it is made.

    Inside ``with chip:`` the model computes as the chip does: new parameters hang in its modules, frozen ones for good, those
    with read noise drawn anew before each forward pass of ``model``. The model's own tensors are set aside, not written
    to. Afterwards they are back, and buffers and ``requires_grad`` are as before.

    Args:
        model: any module.
        device: a fault or a chain.
        seed: of what is frozen.
        reads: of the stream of reads, which goes on from one ``with`` to the next.

    Attributes:
        parameters: what is frozen in the chip, by name: the tensors that differ from the model's own objects.

    Raises:
        UsageError, InputError: parameters that do not exist or cannot be used; the model is untouched.

    Example:
        >>> model, device = nn.Linear(2, 2), Mismatch(0.1)
        >>> with device.chip(model, seed=0):
        ...     y = model(torch.ones(1, 2))
    """

    parameters: dict[str, Tensor]

    def __init__(self, model: nn.Module, device: Hardware, seed: int, reads: int = 0) -> None:
        self._model, self._seed = model, seed
        self._slots = offered(model)
        own = {name: getattr(module, slot).detach() for name, (module, slot) in self._slots.items()}
        self._unmoved: list[Fault] = []
        self._readers: list[tuple[Fault, Reader, torch.Generator]] = []
        self._hooked: list[tuple[Fault, int | None, torch.Generator]] = []
        frozen = streams(device.faults, seed, "chip")
        later = streams(device.faults, seed, "read", reads)
        values = own
        with torch.no_grad():
            for fault, source, stream in zip(device.faults, frozen, later, strict=True):
                if fault.on_layers:
                    # What is frozen starts from the same place each time the chip is used; reads go on.
                    frozen_seed = None if fault.stage == "read" else draw_seed(source)
                    self._hooked.append((fault, frozen_seed, stream))
                    continue
                before = values
                values, reader = fault.place(before, source)
                if reader is not None:
                    self._readers.append((fault, reader, stream))
                elif fault.must_change and not _moved(before, values):
                    self._unmoved.append(fault)
        self._values = values
        self.parameters = {name: value for name, value in values.items() if value is not own[name]}
        self._undo: contextlib.ExitStack | None = None

    def unmoved(self) -> list[Fault]:
        """Return the faults that should have changed parameters and changed none."""
        still = list(self._unmoved)
        values = self._values
        with torch.no_grad():
            for (fault, reader, _), source in zip(
                self._readers, streams(tuple(one for one, *_ in self._readers), self._seed, "probe"), strict=True
            ):
                before, values = values, reader(values, source)
                if fault.must_change and not _moved(before, values):
                    still.append(fault)
        return still

    def __enter__(self) -> "Chip":
        if self._undo is not None:
            raise UsageError("this chip is in use already; make another one with device.chip(model, seed).")
        with contextlib.ExitStack() as stack:
            stack.callback(_restorer(self._model, self._slots))
            self._put(self.parameters)
            if self._readers:
                self._read()
                stack.callback(self._model.register_forward_pre_hook(self._read, prepend=True).remove)
            for fault, frozen_seed, stream in self._hooked:
                for handle in fault.hook(self._model, stream if frozen_seed is None else generator(frozen_seed)):
                    stack.callback(handle.remove)
            self._undo = stack.pop_all()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._undo is not None:
            self._undo.close()
            self._undo = None

    def _read(self, *_: Any) -> None:
        values = self._values
        with torch.no_grad():
            for _fault, reader, stream in self._readers:
                values = reader(values, stream)
        self._put({name: value for name, value in values.items() if value is not self._values[name]})

    def _put(self, values: dict[str, Tensor]) -> None:
        """Hang values in the modules: new tensors, since backward passes may still need those of the read before."""
        made: dict[object, nn.Parameter] = {}
        for name, value in values.items():
            module, slot = self._slots[name]
            there = getattr(module, slot)
            if isinstance(there, nn.Parameter):
                if key(value) not in made:
                    made[key(value)] = nn.Parameter(value, there.requires_grad)
                setattr(module, slot, made[key(value)])
            else:
                setattr(module, slot, value)


def _moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return any(after[name] is not before[name] and not torch.equal(after[name], before[name]) for name in before)


def _restorer(model: nn.Module, slots: dict[str, tuple[nn.Module, str]]) -> Any:
    """Note everything that a block may change, and return what puts it back."""
    there = [(module, slot, getattr(module, slot)) for module, slot in slots.values()]
    needs = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]

    def restore() -> None:
        for module, slot, tensor in there:
            if getattr(module, slot) is not tensor:
                setattr(module, slot, tensor)
        for parameter, needed in needs:
            parameter.requires_grad_(needed)
        for buffer, kept in buffers:
            if not torch.equal(buffer, kept):
                with torch.no_grad():
                    buffer.copy_(kept)

    return restore
