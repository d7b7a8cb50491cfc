"""Any network as layers that convert: every activation a module of its own, batch norm folded, what cannot convert named.

Stacks (``nn.Sequential``) stay what they are; a module with a forward of its own is traced by torch.fx, so that ReLUs and
pooling that are written as functions, sums of branches and one ReLU module that is called in several places are found too.
"""

import copy
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from stalwart.convert.activity import shown
from stalwart.core.errors import InputError
from stalwart.core.layers import NORMS, WEIGHTED, in_order, is_stack, joined, put
from stalwart.core.noise import is_random
from stalwart.core.numbers import require
from stalwart.spiking import QCFS, Neurons

MaxPooling = Literal["refuse", "spikes"]
ACTIVATIONS = (nn.ReLU, QCFS)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d)
_AFFINE = (
    *WEIGHTED,
    *NORMS,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.Dropout,
    nn.Flatten,
    nn.Identity,
    nn.Unflatten,
    nn.Upsample,
    nn.ZeroPad2d,
)
_REMEDIES: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    (_MAX_POOLS, "train it with average pooling, or convert with max_pool='spikes', the largest spike of each step"),
    ((nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardtanh, nn.ReLU6), "train it with ReLU"),
    ((nn.Sigmoid, nn.Tanh, nn.Softplus), "train it with ReLU"),
    ((nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d), "train it with batch norm, which is affine once trained"),
    ((nn.Softmax, nn.LogSoftmax), "leave it out: the network's answers are its logits"),
)
_SHAPES = ("view", "reshape", "flatten", "permute", "transpose", "contiguous", "size", "dim", "unsqueeze", "squeeze")
_JOINS = (operator.add, operator.iadd, operator.sub, torch.add, torch.sub, torch.cat, torch.mean, getattr)
_PLAIN = (operator.getitem, torch.flatten, torch.reshape, torch.permute, *_JOINS)
_SCALES = (operator.mul, operator.truediv, torch.mul, torch.div)
_WHOLE = (operator.floordiv, operator.mul, operator.add, operator.sub)


@dataclass
class Findings:
    """What was done to a network, by module path.

    Attributes:
        activations: each activation that becomes neurons, with its kind.
        folded: each batch norm, with the layer that it went into.
        kept: each other layer, with its kind.
    """

    activations: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


def prepare(
    model: nn.Module, fold: bool = True, max_pool: str = "refuse", analog: bool = True
) -> tuple[nn.Module, Findings]:
    """Return a copy of a network in evaluation mode whose activations are modules, one a call, and what was found.

    Args:
        model: [B, ...] -> [B, K]; left as it is.
        fold: whether batch norms go into the layers before them; otherwise they stay, affine in evaluation mode.
        max_pool: "refuse", or "spikes" to keep max pooling, which then takes the largest spike of each step.
        analog: whether the layers before the first activation see the same analog input in every step, so that they may be of
            any kind.

    Raises:
        InputError: a layer that cannot convert, or a module that cannot be traced, named by its path with what to do.
    """
    require(max_pool in ("refuse", "spikes"), f"max_pool must be 'refuse' or 'spikes', got {max_pool!r}.")
    if any(isinstance(module, Neurons) for module in model.modules()):
        raise InputError("the model has spiking neurons already; convert the network that it was before.")
    if is_random(model):
        raise InputError(
            "the model draws noise, which has no place in integrate-and-fire neurons; convert a network without noise layers."
        )
    own = nn.Sequential(copy.deepcopy(model).eval())
    _trace_inside(own, "", set())
    layers = own.eval()[0]
    found = Findings()
    if fold:
        _fold(layers, found)
    _check(layers, found, max_pool, analog)
    return layers, found


class _Tracer(fx.Tracer):
    """Goes into every module that is no layer of PyTorch, nor one of our own that tells what it is."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_layer(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.is_leaf_module(m, ""):
            return super().call_module(m, forward, args, kwargs)
        # Whatever checks the types of its arguments would not know the tracer's stand-ins for tensors.
        plain = inspect.unwrap(type(m).forward)
        return super().call_module(m, lambda *a, **k: plain(m, *a, **k), args, kwargs)


def _is_layer(module: nn.Module) -> bool:
    known = type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.Sequential)
    return known or isinstance(module, ACTIVATIONS) or getattr(module, "affine_map", False)


def _trace_inside(owner: nn.Module, path: str, seen: set[int]) -> None:
    for name, child in list(owner._modules.items()):
        assert child is not None
        where = joined(path, name)
        if is_stack(child):
            _trace_inside(child, where, seen)
        elif _is_layer(child):
            # A stack may hold one activation in several places; each place gets neurons of its own.
            setattr(owner, name, copy.deepcopy(child) if id(child) in seen and isinstance(child, nn.ReLU) else child)
        else:
            setattr(owner, name, _traced(child, where.partition(".")[2]))
        seen.add(id(child))


def _traced(module: nn.Module, path: str) -> nn.Module:
    """Return a module as a graph of layers, or as a stack where each follows the one before."""
    what = f"module '{path}' ({type(module).__name__})" if path else f"the model ({type(module).__name__})"
    try:
        graph = _Tracer().trace(_Holder(module))
    except Exception as problem:
        first = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise InputError(
            f"{what} cannot be traced: {first}. Write its forward without branches on values, or as an nn.Sequential."
        ) from problem
    holder = fx.GraphModule(_Holder(module), graph)
    for node in list(graph.nodes):
        _as_layer(holder, node, what)
    graph.eliminate_dead_code()
    holder.delete_all_unused_submodules()
    holder.recompile()
    return _stacked(holder) or holder


class _Holder(nn.Module):
    """Stands around a module, so that its forward can be traced as it was written."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return inspect.unwrap(type(self.inner).forward)(self.inner, x)


def _as_layer(holder: fx.GraphModule, node: fx.Node, what: str) -> None:
    """Turn a function into the layer that it is, give each call of an activation its own module, refuse what is neither."""
    if node.op in ("placeholder", "output", "get_attr"):
        return
    if node.op == "call_module":
        module = holder.get_submodule(str(node.target))
        if isinstance(module, nn.ReLU) and sum(n.target == node.target for n in holder.graph.nodes) > 1:
            _become(holder, node, nn.ReLU())
        return
    layer = _layer_of(node)
    if layer is not None:
        _become(holder, node, layer)
        return
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    inputs = [one for one in node.all_input_nodes if not _is_number(one)]
    if _is_number(node) or (node.op == "call_method" and name in (*_SHAPES, "mean", "add", "add_", "chunk", "split")):
        return
    if node.target in _PLAIN or (node.target in _SCALES and len(inputs) == 1):
        return
    raise InputError(
        f"{what} calls '{name}' between its layers, which spikes cannot pass step by step; use ReLU, sums, concatenation, "
        "average pooling, linear layers and changes of shape alone."
    )


def _is_number(node: fx.Node) -> bool:
    """Tell whether a node is a size or computed of sizes."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    if node.op == "call_function":
        if node.target is getattr:
            return node.args[1] in ("shape", "ndim")
        if node.target in (operator.getitem, *_WHOLE):
            return bool(node.all_input_nodes) and all(map(_is_number, node.all_input_nodes))
    return False


def _layer_of(node: fx.Node) -> nn.Module | None:
    """Return the layer that a call of a function or method is, if there is one."""

    def argument(at: int, name: str, default: Any = None) -> Any:
        return node.args[at] if len(node.args) > at else node.kwargs.get(name, default)

    if node.target in (F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_"):
        return nn.ReLU()
    if node.target in (F.avg_pool2d, torch._C._nn.avg_pool2d):
        rest = argument(2, "stride"), argument(3, "padding", 0), argument(4, "ceil_mode", False)
        return nn.AvgPool2d(argument(1, "kernel_size"), *rest)
    if node.target in (F.max_pool2d, torch.max_pool2d):
        rest = argument(2, "stride"), argument(3, "padding", 0), argument(4, "dilation", 1)
        return nn.MaxPool2d(argument(1, "kernel_size"), *rest)
    if node.target is F.adaptive_avg_pool2d:
        return nn.AdaptiveAvgPool2d(argument(1, "output_size"))
    if node.target in (F.dropout, torch.dropout):
        return nn.Dropout(argument(1, "p", 0.5))
    if (
        node.target in (torch.flatten, "flatten")
        and argument(2, "end_dim", -1) == -1
        and argument(1, "start_dim", 0) >= 1
    ):
        return nn.Flatten(argument(1, "start_dim"))
    if node.target in ("view", "reshape", torch.reshape):
        given = node.args[1:] if node.target != torch.reshape and len(node.args) > 2 else argument(1, "shape")
        if isinstance(given, tuple | list) and len(given) == 2 and given[1] == -1 and _is_number_like(given[0]):
            return nn.Flatten()
    return None


def _is_number_like(value: Any) -> bool:
    return isinstance(value, fx.Node) and _is_number(value)


def _become(holder: fx.GraphModule, node: fx.Node, layer: nn.Module) -> None:
    name = f"{type(layer).__name__.lower()}_call_{sum(type(m) is type(layer) for m in holder.modules()) + 1}"
    holder.add_submodule(name, layer)
    (source, *_) = node.all_input_nodes
    node.op, node.target, node.args, node.kwargs = "call_module", name, (source,), {}


def _stacked(holder: fx.GraphModule) -> nn.Sequential | None:
    """Return a graph as a stack where each of its layers takes what the one before gives, and nothing else."""
    stack: dict[str, nn.Module] = {}
    before: fx.Node | None = None
    for node in holder.graph.nodes:
        if node.op == "placeholder":
            before = node
        elif node.op == "output":
            if node.args != (before,):
                return None
        elif node.op == "call_module" and node.args == (before,) and not node.kwargs:
            name = str(node.target).removeprefix("inner.").replace(".", "_")
            if name in stack:
                return None
            stack[name], before = holder.get_submodule(str(node.target)), node
        else:
            return None
    made = nn.Sequential()
    for name, layer in stack.items():
        made.add_module(name, layer)
    return made


def _fold(layers: nn.Module, found: Findings) -> None:
    before: tuple[str, nn.Module] | None = None
    for path, layer in list(in_order(layers)):
        if isinstance(layer, fx.GraphModule):
            _fold_in_graph(layer, path, found)
        elif isinstance(layer, NORMS) and before is not None and isinstance(before[1], WEIGHTED):
            put(layers, before[0], _fused(before[1], layer))
            put(layers, path, nn.Identity())
            found.folded[path] = before[0]
        before = path, layer


def _fold_in_graph(holder: fx.GraphModule, path: str, found: Findings) -> None:
    for node in list(holder.graph.nodes):
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        norm, layer = holder.get_submodule(str(node.target)), holder.get_submodule(str(source.target))
        if isinstance(norm, NORMS) and isinstance(layer, WEIGHTED) and len(source.users) == 1:
            put(holder, str(source.target), _fused(layer, norm))
            found.folded[joined(path, str(node.target))] = joined(path, str(source.target))
            node.replace_all_uses_with(source)
            holder.graph.erase_node(node)
    holder.delete_all_unused_submodules()
    holder.recompile()


def _fused(layer: Any, norm: Any) -> nn.Module:
    fused: nn.Module = (
        fuse_linear_bn_eval(layer, norm) if isinstance(layer, nn.Linear) else fuse_conv_bn_eval(layer, norm)
    )
    return fused


def _check(layers: nn.Module, found: Findings, max_pool: str, analog: bool) -> None:
    for path, layer in in_order(layers):
        if isinstance(layer, fx.GraphModule):
            analog = False
            parts = [
                (joined(path, str(node.target)), layer.get_submodule(str(node.target)))
                for node in layer.graph.nodes
                if node.op == "call_module"
            ]
        else:
            parts = [(path, layer)]
        for where, part in parts:
            named = shown(where)
            if isinstance(part, ACTIVATIONS):
                found.activations[where], analog = type(part).__name__, False
            elif isinstance(part, _AFFINE) or getattr(part, "affine_map", False) or analog:
                if not isinstance(part, nn.Identity):
                    found.kept[named] = type(part).__name__
            elif isinstance(part, _MAX_POOLS) and max_pool == "spikes":
                found.kept[named] = f"{type(part).__name__}, of the spikes of each step"
            else:
                raise InputError(f"'{named}' ({type(part).__name__}) cannot become spikes; {_remedy(part)}.")
    if not found.activations:
        raise InputError("the model has no ReLU that neurons could take the place of; a spiking network needs one.")


def _remedy(layer: nn.Module) -> str:
    for kinds, remedy in _REMEDIES:
        if isinstance(layer, kinds):
            return remedy
    return "build the network of linear layers, batch norm, average pooling and ReLU"
