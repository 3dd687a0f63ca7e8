"""Frozen means constant: through training steps, train() calls, copies and partial thaws."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from freezing.models import IMAGES, MODELS, VGG, Basic, ResNet, ViT
from torch import nn

from spfde.convert.sparsify import sparsify
from spfde.freezing import freeze, is_frozen, unfreeze

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=False),
    "sgd-foreach": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=True),
    "sgd-fused": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, foreach=False),
    "adamw-foreach": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, foreach=True),
    "adamw-fused": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, fused=True),
}


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: m.training for name, m in model.named_modules()}


def bits(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, set_to_none: bool = True) -> None:
    model.train()
    optimizer.zero_grad(set_to_none=set_to_none)
    nn.functional.cross_entropy(model(torch.randn(IMAGES)), torch.randint(5, (4,))).backward()
    optimizer.step()


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_bit_identical_after_100_further_steps_of_any_optimizer(make, sparse):
    torch.manual_seed(0)
    model = ResNet()
    if sparse:
        sparsify(model, sparsity=0.5)
    optimizer = make(model.parameters())
    for _ in range(3):  # momentum and statistics that would go on moving what is frozen
        step(model, optimizer)
    front = [model.conv1, model.bn1, model.layer1]
    for module in front:
        freeze(module)
    frozen, active = [bits(m) for m in front], bits(model.layer2)
    assert any("num_batches_tracked" in name for name in frozen[2])
    for _ in range(100):
        step(model, optimizer)
    assert all(same_bits(before, bits(m)) for before, m in zip(frozen, front, strict=True))
    now = bits(model.layer2)
    assert not any(torch.equal(active[k], now[k]) for k in active if k.endswith(("values", "running_mean", "tracked")))
    assert all(p.grad is None for m in front for p in m.parameters())


def test_gradients_zeroed_instead_of_dropped_do_not_move_it_either():
    torch.manual_seed(0)
    model = VGG()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    step(model, optimizer, set_to_none=False)
    freeze(model.features)
    before = bits(model.features)
    for _ in range(5):
        step(model, optimizer, set_to_none=False)
    assert same_bits(before, bits(model.features))


def test_stays_in_eval_mode_whoever_calls_train():
    model = ResNet()
    freeze(model.layer1)
    for call in (model.train, model.layer1.train, model.layer1[0].bn1.train, model.layer1[0].train):
        call()
        assert not any(m.training for m in model.layer1.modules())
    model.apply(lambda m: m.train())
    assert not any(m.training for m in model.layer1.modules())
    assert model.layer2.training and model.layer1.train() is model.layer1
    model.eval()
    assert not any(m.training for m in model.modules())
    model.train()
    assert model.layer2[0].bn1.training and not model.layer1[0].bn1.training


@pytest.mark.parametrize("name", MODELS)
def test_output_of_a_frozen_model_is_that_of_eval_mode(name):
    model = MODELS[name]()
    x = torch.randn(IMAGES)
    expected = model.eval()(x)
    freeze(model.train())
    model.train()
    assert torch.equal(model(x), expected) and not model(x).requires_grad


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("clone", [copy.deepcopy, through_pickle, through_file])
def test_survives_copies_which_live_a_life_of_their_own(clone):
    model = ResNet()
    model.layer1[0].bn1.weight.requires_grad_(False)
    freeze(model.layer1)
    twin = clone(model)
    twin.train()
    assert is_frozen(twin.layer1) and not is_frozen(twin.layer2) and twin.layer2[0].bn1.training
    assert not any(m.training for m in twin.layer1.modules())
    unfreeze(twin.layer1)
    twin.train()
    assert all(m.training for m in twin.modules()) and is_frozen(model.layer1)
    assert [n for n, p in twin.named_parameters() if not p.requires_grad] == ["layer1.0.bn1.weight"]
    block = clone(model.layer1[1])  # a frozen part on its own
    assert is_frozen(block) and not block.train().training


def test_state_dict_keys_stay_and_load_between_frozen_and_active():
    frozen, active = ResNet(), ResNet()
    keys = list(frozen.state_dict())
    freeze(frozen.layer1)
    assert list(frozen.state_dict()) == keys
    active.load_state_dict(frozen.state_dict())
    frozen.load_state_dict(active.state_dict())
    assert is_frozen(frozen.layer1) and not is_frozen(active.layer1)


def test_unfreeze_gives_back_flags_and_modes():
    model = ResNet()
    model.layer1[0].conv1.weight.requires_grad_(False)
    model.layer1[1].bn2.eval()
    flags, before = {n: p.requires_grad for n, p in model.named_parameters()}, modes(model)
    assert freeze(model) is model and freeze(model) is model
    assert is_frozen(model) and not any(p.requires_grad for p in model.parameters())
    assert unfreeze(model) is model
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags and modes(model) == before
    unfreeze(model)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags and modes(model) == before
    assert not is_frozen(model) and "train" not in vars(model)


def test_a_child_of_a_frozen_parent_can_be_unfrozen_and_frozen_again():
    model = ResNet()
    freeze(model.layer1)
    unfreeze(model.layer1[1])
    model.eval()
    assert not any(m.training for m in model.layer1[1].modules())
    model.train()
    assert not is_frozen(model.layer1) and is_frozen(model.layer1[0])
    assert all(m.training for m in model.layer1[1].modules()) and not model.layer1[0].bn1.training
    assert all(p.requires_grad for p in model.layer1[1].parameters())
    freeze(model.layer1)
    assert is_frozen(model.layer1)
    unfreeze(model.layer1)
    assert all(p.requires_grad for p in model.parameters()) and all(m.training for m in model.modules())


def test_unfreezing_a_parent_unfreezes_what_was_frozen_inside_before():
    model = ResNet()
    model.layer1[0].conv1.weight.requires_grad_(False)
    freeze(model.layer1[0])
    freeze(model)
    unfreeze(model)
    assert not is_frozen(model.layer1[0]) and all(m.training for m in model.modules())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["layer1.0.conv1.weight"]


def test_tied_parameters_inside_come_back():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    freeze(model)
    unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())
    freeze(model[1])
    freeze(model)
    unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())


def test_a_module_used_in_two_places_is_frozen_in_both():
    shared = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), shared), nn.Sequential(nn.Linear(4, 4), shared))
    freeze(model[0])
    before = bits(shared)
    model.train()
    model(torch.randn(8, 4)).sum().backward()
    assert same_bits(before, bits(shared)) and not is_frozen(model[1]) and model[1][0].weight.grad is not None


def test_is_frozen_notices_a_parameter_that_was_made_trainable_by_hand():
    model = freeze(nn.Linear(2, 2))
    model.bias.requires_grad_(True)
    assert not is_frozen(model)
    freeze(model)
    assert is_frozen(model)


def test_is_frozen_notices_a_mode_that_was_set_past_train_and_freeze_sets_it_back():
    model = ResNet()
    freeze(model.layer1)
    for module in model.modules():  # as a `train()` that a model writes itself may do
        module.training = True
    assert not is_frozen(model.layer1)
    before = bits(model.layer1)
    freeze(model.layer1)
    model(torch.randn(IMAGES))
    assert is_frozen(model.layer1) and same_bits(before, bits(model.layer1))
    unfreeze(model.layer1)
    assert all(m.training for m in model.modules())


def test_the_mark_goes_with_a_norm_that_is_converted_for_several_processes():
    model = ResNet()
    freeze(model.layer1)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert is_frozen(model.layer1) and isinstance(model.layer1[0].bn1, nn.SyncBatchNorm)
    model.train()
    assert not any(m.training for m in model.layer1.modules()) and model.layer2[0].bn1.training
    unfreeze(model.layer1)
    assert all(p.requires_grad for p in model.parameters()) and all(m.training for m in model.modules())


def test_a_new_layer_in_a_frozen_model_trains():
    model = freeze(ResNet())
    model.fc = nn.Linear(8, 2)
    model.train()
    assert model.fc.training and model.fc.weight.requires_grad and not is_frozen(model)


def tied_weight() -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model, model[0]


def lent_norm() -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(Basic(3, 3), Basic(3, 3))
    model[1].bn2 = model[0].bn1
    return model, model[0]


def lent_dropout() -> tuple[nn.Module, nn.Module]:
    drop = nn.Dropout()
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), drop), nn.Sequential(nn.Linear(4, 4), drop))
    return model, model[0]


def shared_buffer() -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    model[1].running_mean = model[0].running_mean
    return model, model[0]


@pytest.mark.parametrize(
    ("make", "ours", "theirs"),
    [
        (tied_weight, "0.weight", "2.weight"),
        (lent_norm, "0.bn1", "1.bn2"),
        (lent_dropout, "0.1", "1.1"),
        (shared_buffer, "0.running_mean", "1.running_mean"),
    ],
)
def test_what_an_active_part_needs_too_is_refused_by_name_before_anything_changes(make, ours, theirs):
    model, part = make()
    with pytest.raises(ValueError, match=f"serve no active part, got '{ours}' shared with '{theirs}'; try"):
        freeze(part, model=model)
    assert all(p.requires_grad for p in model.parameters()) and all(m.training for m in model.modules())
    assert not any("train" in vars(m) for m in model.modules())
    freeze(model, model=model)
    assert is_frozen(model)


def test_what_only_frozen_parts_share_is_accepted():
    model, part = tied_weight()
    freeze(model[2])
    freeze(part, model=model)
    relu = nn.ReLU()
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), relu), nn.Sequential(nn.Linear(4, 4), relu))
    freeze(model[0], model=model)
    assert is_frozen(model[0]) and not is_frozen(model[1])


def test_without_the_model_a_tied_parameter_is_constant_in_both_places():
    model, part = tied_weight()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    freeze(part)
    before = part.weight.clone()
    for _ in range(5):
        model.train()
        optimizer.zero_grad()
        model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
    assert torch.equal(part.weight, before) and model[2].bias.grad is not None


@pytest.mark.parametrize("front", [1, 2, 3])
def test_a_frozen_prefix_costs_no_backward_and_keeps_no_activation(front):
    model = ResNet()
    parts = [model.conv1, model.bn1, model.layer1[0], model.layer1[1], model.layer2[0]]
    x = torch.randn(IMAGES)
    model(x)
    for part in parts[: front + 2]:
        freeze(part)
    model.train()
    outputs, saved = [], []
    for part in parts:
        part.register_forward_hook(lambda m, a, y: outputs.append((y.requires_grad, len(saved))))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(x).sum().backward()
    assert [needs for needs, _ in outputs] == [False] * (front + 2) + [True] * (3 - front)
    assert [count for _, count in outputs][: front + 2] == [0] * (front + 2) and saved


def test_a_frozen_part_in_the_middle_still_passes_gradients():
    model = ResNet()
    freeze(model.layer1)
    model(torch.randn(IMAGES)).sum().backward()
    assert model.conv1.weight.grad is not None and all(p.grad is None for p in model.layer1.parameters())


def test_dropout_is_off_in_a_frozen_part():
    model = ViT()
    freeze(model.encoder)
    model.train()
    x = torch.randn(2, 5, 8)
    assert torch.equal(model.encoder(x), model.encoder(x))


def test_traces_and_scripts():
    model = freeze(Basic(3, 3))
    x = torch.randn(IMAGES)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))
    assert torch.allclose(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.parametrize("call", [freeze, unfreeze, is_frozen])
def test_wrong_types_are_refused(call):
    with pytest.raises(TypeError, match=r"expected an nn.Module, got list; try one of model.named_modules\(\)"):
        call([nn.ReLU()])


def test_a_mode_that_is_no_bool_is_refused_as_by_torch():
    with pytest.raises(ValueError, match="expected a bool as training mode, got 1"):
        freeze(nn.ReLU()).train(1)
