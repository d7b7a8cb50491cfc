"""A model run with other weights for one call, its own left as they are."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call

from stalwart.spiking.network import keeping


def run_with(model: nn.Module, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return model(x) with the parameters and buffers in ``tensors`` in the place of its own, by name.

    A parameter that several modules share is replaced in all of them. Gradients flow to ``tensors``; activations are kept,
    since the backward pass comes when the model has its own weights again.
    """
    with keeping(model):
        out: Tensor = functional_call(model, dict(tensors), (x,))
    return out
