"""Which tensors of a model a fault acts on, by name."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from stalwart.core.errors import InputError, UsageError
from stalwart.core.random import generator
from stalwart.core.registry import suggest

NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Layers that a chip computes digitally or folds away: what they hold is never offered to a fault."""

Slot = tuple[nn.Module, str]


def offered(model: nn.Module) -> dict[str, Slot]:
    """Return where each parameter and buffer of the model hangs, by name; a tied one under each of its names.

    What normalisation layers hold is left out: fold them into the weights first if they are to be analog.

    Raises:
        InputError: a weight is computed from others by ``torch.nn.utils.parametrize``.
    """
    found: dict[str, Slot] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if torch.nn.utils.parametrize.is_parametrized(module):
            raise InputError(
                f"the weights of '{path}' are computed by torch.nn.utils.parametrize, and a chip stores the result; call "
                "torch.nn.utils.parametrize.remove_parametrizations(module, name) on a copy of the model first."
            )
        if not isinstance(module, NORMALISATIONS):
            for slot, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    found[f"{path}.{slot}" if path else slot] = (module, slot)
    return found


def choose(params: Mapping[str, Tensor], only: str | tuple[str, ...], biases: bool) -> list[str]:
    """Return the names that the glob patterns ``only`` match, in the order of ``params``.

    Args:
        params: tensors by name.
        only: patterns such as "conv*.weight" or "*threshold", taken at their word. Without a pattern: every tensor of two
            dimensions or more whose own name contains "weight", that is the matrices and kernels.
        biases: without a pattern, whether the bias beside each such weight is chosen too.

    Raises:
        UsageError: a pattern matches nothing, or there are no matrices; the message names what there is.
        InputError: a chosen tensor is not float32 or float64.
    """
    patterns = (only,) if isinstance(only, str) else only
    there = f"There is: {_listing(list(params))}."
    if patterns:
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in params):
                raise UsageError(f"no parameter is called '{pattern}'.{suggest(pattern, params)} {there}")
        chosen = [name for name in params if any(fnmatchcase(name, pattern) for pattern in patterns)]
    else:
        matrices = [name for name, tensor in params.items() if "weight" in _own(name) and tensor.dim() >= 2]
        beside = {name[: -len(_own(name))] + _own(name).replace("weight", "bias") for name in matrices if biases}
        chosen = [name for name in params if name in beside or name in matrices]
        if not chosen:
            raise UsageError(f"there is no weight matrix to put a fault on; name parameters with only=. {there}")
    for name in chosen:
        if params[name].dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"'{name}' holds {params[name].dtype}, and device models work on float32 or float64: load the network with "
                "floating-point weights (dequantised, or model.float()) and let Quantise or BitFlips make the codes."
            )
    return chosen


def chosen_parameters(model: nn.Module, only: str | tuple[str, ...], biases: bool) -> dict[str, nn.Parameter]:
    """Return the model's own parameters that a fault with these choices acts on, tied ones once; see :func:`choose`.

    Raises:
        UsageError, InputError: as :func:`offered` and :func:`choose`; or only buffers are chosen.
    """
    there = {name: getattr(module, slot) for name, (module, slot) in offered(model).items()}
    wanted = {id(there[name]) for name in choose(there, only, biases)}
    found = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in wanted}
    if not found:
        raise UsageError(f"{only!r} names buffers alone; name parameters. There is: {_listing(list(there))}.")
    return found


def change(
    params: Mapping[str, Tensor], names: list[str], source: torch.Generator, perturb: Callable[..., Tensor]
) -> dict[str, Tensor]:
    """Return ``params`` with ``perturb(tensor, generator)`` in place of each named tensor, tied ones by one draw.

    Each tensor has a stream of its own, so that its draw does not depend on which others are chosen.
    """
    root = draw_seed(source)
    done: dict[object, Tensor] = {}
    for name in names:
        tensor = params[name]
        if key(tensor) not in done:
            done[key(tensor)] = perturb(tensor, generator(root, name, device=tensor.device))
    return {name: done.get(key(tensor), tensor) for name, tensor in params.items()}


def draw_seed(source: torch.Generator) -> int:
    """Draw the root seed of further streams from a generator on the CPU."""
    return int(torch.randint(0, 2**62, (), generator=source))


def key(tensor: Tensor) -> object:
    """Return what two tensors have in common exactly where they are the same memory."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else id(tensor)


def _own(name: str) -> str:
    return name.rpartition(".")[2]


def _listing(names: list[str], most: int = 16) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more
