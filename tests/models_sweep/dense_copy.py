"""The masked dense copy of a sparse model: the original definition, weights times masks, made without densify."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from models_sweep.definition import Batch, call, mapped, tensors
from torch import Tensor, nn

from spfde.nn import SparseLayer

# How much further from float64 a tensor may be than torch's float32 is, and what is granted of its largest value where
# torch happens to be exact. Each step of a training hands the rounding of the last through norms of small batches.
TIMES, ROUNDING, STEPS = 10.0, 2e-5, 1e-3

# Torch's float32 error is that of three copies, two of them with weights off by what rounding does: where a network has
# a kink (ReLU, max pooling, a bucket) within rounding of an activation, one of them falls on the other side.
COPIES, NOISE = 3, 5e-7

Results = dict[str, Tensor]


class TooFar(AssertionError):
    """A number is further from float64 than rounding explains, on this batch."""


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, SparseLayer)}


def dense_of(layer: SparseLayer, slots: Tensor) -> Tensor:
    """A tensor shaped like `values` as a dense weight."""
    shown = copy.deepcopy(layer)
    with torch.no_grad():
        shown.values.copy_(slots)
    return shown.dense_weight()


@dataclass
class DenseCopy:
    """The masked dense copy in float32 (three times, see COPIES) and, to tell rounding from mistakes, in float64."""

    singles: list[nn.Module]
    double: nn.Module
    masks: dict[str, Tensor]

    @classmethod
    def of(cls, original: nn.Module, sparse: nn.Module) -> DenseCopy:
        """From the dense model that `sparse` was made of, both unchanged since.

        Raises:
            AssertionError: the stored weights are not those of the dense model.
        """
        single = copy.deepcopy(original)
        for name, layer in sparse_layers(sparse).items():
            weight, mask = single.get_submodule(name).weight, layer.mask()
            assert weight.shape == mask.shape, f"{name}: {list(weight.shape)}, mask {list(mask.shape)}"
            with torch.no_grad():
                weight.mul_(mask)
            assert torch.equal(weight, layer.dense_weight()), f"{name}: a stored weight changed"
        return cls._copies(single, sparse)

    @classmethod
    def at(cls, original: nn.Module, sparse: nn.Module) -> DenseCopy:
        """With the present weights, masks and statistics of `sparse`."""
        single = copy.deepcopy(original)
        single.load_state_dict(dense_state(sparse))
        return cls._copies(single, sparse)

    @classmethod
    def _copies(cls, single: nn.Module, sparse: nn.Module) -> DenseCopy:
        masks = {name: layer.mask() for name, layer in sparse_layers(sparse).items()}
        generator = torch.Generator().manual_seed(4)
        singles = [single, *(copy.deepcopy(single) for _ in range(COPIES - 1))]
        with torch.no_grad():
            for p in (p for other in singles[1:] for p in other.parameters()):
                p.mul_(1 + NOISE * torch.randn(p.shape, generator=generator))
        return cls(singles, copy.deepcopy(single).double(), masks)

    @property
    def models(self) -> list[nn.Module]:
        return [self.double, *self.singles]

    def run(self, batch: Batch) -> list[Results]:
        """Outputs and gradients in float64 and in float32."""
        return [self.masked(results(model, in_precision_of(model, batch))) for model in self.models]

    def masked(self, found: Results) -> Results:
        """Gradients at the stored places alone."""
        keys = {f"gradient of {name}.weight": mask for name, mask in self.masks.items()}
        return {k: t * keys[k] if k in keys else t for k, t in found.items()}


def dense_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state_dict, with a dense weight for every sparse layer, under each of its names."""
    layers = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, SparseLayer)}
    state = {k: v.clone() for k, v in model.state_dict().items() if k.rpartition(".")[0] not in layers}
    for name, layer in layers.items():
        own = {k: v for k, v in layer.state_dict().items() if k not in ("values", "row_ptr", "col")}  # a bias, a gain
        state.update({f"{name}.{k}": v.clone() for k, v in {"weight": layer.dense_weight(), **own}.items()})
    return state


def results(model: nn.Module, batch: Batch) -> Results:
    """Outputs of one pass, and the gradients of the inputs and of all parameters, left in `.grad` as well."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(2)
    batch = mapped(batch, lambda x: x.clone().requires_grad_())
    outputs = list(tensors(call(model, batch)))
    loss(outputs).backward()
    inputs = batch.items() if isinstance(batch, dict) else enumerate(batch)
    grads = {f"gradient of input {k}": x.grad for k, x in inputs if isinstance(x, Tensor) and x.grad is not None}
    layers = sparse_layers(model)
    for name, p in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        if p.grad is not None and leaf == "values" and module in layers:
            grads[f"gradient of {module}.weight"] = dense_of(layers[module], p.grad)
        elif p.grad is not None:
            grads[f"gradient of {name}"] = p.grad.clone()
    return {f"output {i}": y.detach() for i, y in enumerate(outputs)} | grads


def loss(outputs: list[Tensor]) -> Tensor:
    """A scalar whose gradient at every output is random, and which is bounded below."""
    generator = torch.Generator().manual_seed(3)
    total = torch.zeros((), dtype=outputs[0].dtype)
    for y in outputs:
        if y.requires_grad:
            target = torch.randn(y.shape, generator=generator).to(y.dtype)
            total = total + (y - target).square().sum() / (2 * y.numel() ** 0.5)
    return total


def in_precision_of(model: nn.Module, batch: Batch) -> Batch:
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return mapped(batch, lambda x: x.to(dtype))


def worst(found: Results, double: Results, *singles: Results, granted: float = ROUNDING) -> float:
    """The largest error of `found` as a share of what is allowed (see TIMES).

    Torch's error is a tensor's own, or what three quarters of the tensors stay below: one kink moves all that is before
    it, and seldom the same one in two copies.

    Raises:
        AssertionError: a tensor is missing, of another shape, or not finite.
        TooFar: one is further off.
    """
    assert found.keys() == double.keys(), f"only one has {sorted(found.keys() ^ double.keys())}"
    errors, torchs, scales = {}, {}, {}
    for name, exact in double.items():
        assert found[name].shape == exact.shape, f"{name}: {list(found[name].shape)} != {list(exact.shape)}"
        if exact.numel():
            assert torch.isfinite(exact).all(), f"{name}: the dense copy is not finite"
            assert torch.isfinite(found[name]).all(), f"{name}: not finite"
            errors[name] = distance(found[name], exact)
            torchs[name] = max(distance(single[name], exact) for single in singles)
            scales[name] = exact.double().abs().max().item()
    common = quantile([torchs[name] / scale for name, scale in scales.items() if scale], 0.75)
    allowed = {n: TIMES * max(torchs[n], common * scale) + granted * scale for n, scale in scales.items()}
    shares = {name: error / allowed[name] if allowed[name] else float(error > 0) for name, error in errors.items()}
    bad = {name: share for name, share in shares.items() if share > 1}
    if bad:
        first = [f"{n} {share:.3g} ({errors[n] / (scales[n] or 1):.1g})" for n, share in list(bad.items())[:5]]
        what = "times of what is allowed (share of the largest value)"
        raise TooFar(f"{len(bad)} of {len(shares)} tensors too far off, in {what}: {', '.join(first)}")
    return max(shares.values(), default=0.0)


def distance(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))] if values else 0.0
