"""One update of every rule by hand: literal masks, values and counts."""

from itertools import combinations

import pytest
import torch
from torch import nn

from spfde import sparsify
from spfde.nn import SparseLinear
from spfde.topology import DSR, DSTEE, GMP, ITOP, SET, SNFS, DeepR, GaP, RigL, SRigL, TopKAST
from spfde.topology.methods.srigl import fan_in


def layer_of(rows, pattern="unstructured"):
    linear = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(rows))
    return SparseLinear.from_dense(linear, pattern=pattern)


def still(layer):
    """An optimizer that changes nothing, so that an example's weights stay literal."""
    return torch.optim.SGD(layer.parameters(), lr=0.0)


def step(layer, optimizer, topology, x, dy=1.0):
    """One step with dL/dW = dy x for every output (dy: a number, or one for each output)."""
    optimizer.zero_grad()
    (layer(torch.tensor([x])) * torch.as_tensor(dy)).sum().backward()
    optimizer.step()
    return topology.step()


def weights(layer):
    return layer.dense_weight().tolist()


def test_set_keeps_what_it_draws_again():
    """4 and -3 stay; two of the other six places come, and the dropped 1 and 2 keep their value if drawn again."""
    old, seen = {1: 4.0, 2: 1.0, 5: -3.0, 7: 2.0}, set()
    for seed in range(100):
        layer = layer_of([[0.0, 4, 1, 0], [0, -3, 0, 2]])
        topology = SET(layer, still(layer), total_steps=9, every=1, drop_fraction=0.5, seed=seed)
        moved, stored = topology.step(), layer.positions().tolist()
        grown = tuple(sorted(set(stored) - {1, 5}))
        assert layer.nnz == 4 and {1, 5} < set(stored) and moved == (grown != (2, 7))
        assert layer.values.view(-1).tolist() == [old.get(p, 0.0) for p in stored]
        seen.add(grown)
    assert seen == set(combinations([0, 2, 3, 4, 6, 7], 2))


@pytest.mark.parametrize(("split", "dropped"), [(False, {0, 1}), (True, {0, 3})])
def test_set_by_sign(split, dropped):
    """1 2 3 and -4 -5 -6: a third goes, over all the two smallest, by sign the smallest of either."""
    layer = layer_of([[1.0, 2, 3, -4, -5, -6, 0, 0, 0, 0, 0, 0]])
    topology = SET(layer, still(layer), total_steps=9, every=1, drop_fraction=1 / 3, seed=1, split_signs=split)
    topology.step()
    assert {0, 1, 2, 3, 4, 5} - set(layer.positions().tolist()) <= dropped
    assert set(layer.positions().tolist()) >= {0, 1, 2, 3, 4, 5} - dropped


def test_set_by_sign_refuses_blocks():
    layer = sparsify(nn.Linear(8, 8), 0.5, pattern="block:2x2")
    with pytest.raises(ValueError, match="expected a pattern that SET has a meaning for"):
        SET(layer, still(layer), total_steps=9, split_signs=True)


def test_rigl_grows_where_the_gradient_is_largest():
    layer = layer_of([[4.0, 1, 0, 0, 0]])
    optimizer = still(layer)
    topology = RigL(layer, optimizer, total_steps=1000, every=2, drop_fraction=0.51)
    assert not topology.armed
    assert not step(layer, optimizer, topology, [9.0, 0, 9, 0, 0])  # not watched
    assert topology.armed
    assert step(layer, optimizer, topology, [9.0, 1, 2, -5, 3])
    assert weights(layer) == [[4, 0, 0, 0, 0]]
    assert layer.positions().tolist() == [0, 3]
    assert not topology.armed


def test_rigl_regrows_at_its_value():
    layer = layer_of([[4.0, 1, 0, 0, 0]])
    optimizer = still(layer)
    topology = RigL(layer, optimizer, total_steps=1000, every=1, drop_fraction=0.51)
    assert not step(layer, optimizer, topology, [0.0, 7, 2, 5, 3])
    assert weights(layer) == [[4, 1, 0, 0, 0]]


def test_rigl_stops_at_its_end():
    layer = layer_of([[4.0, 1, 0, 0, 0]])
    topology = RigL(layer, still(layer), total_steps=8, every=1, end=0.5)
    assert [topology.due(step) for step in range(1, 8)] == [True, True, True, False, False, False, False]


def test_ties_go_to_the_lower_position():
    layer = layer_of([[4.0, 1, 0, 0, 0]])
    optimizer = still(layer)
    topology = RigL(layer, optimizer, total_steps=1000, every=1, drop_fraction=0.51)
    assert step(layer, optimizer, topology, [0.0, 0, 2, 2, 2])
    assert layer.positions().tolist() == [0, 2]


@pytest.mark.parametrize(("pattern", "grown"), [("fan-in", [3, 6]), ("2:4", [3, 6])])
def test_growth_stays_in_its_group(pattern, grown):
    """Every output (and every four) keeps two: one is dropped in each, and grown there."""
    layer = layer_of([[4.0, 1, 0, 0], [4, 1, 0, 0]], pattern)
    optimizer = still(layer)
    topology = RigL(layer, optimizer, total_steps=10**6, every=1, drop_fraction=0.5001)
    assert step(layer, optimizer, topology, [0.0, 0, 2, 3], [1.0, 1.0])
    assert layer.positions().tolist() == [0, 3, 4, 7]


def test_itop_reports_what_was_explored():
    layer = layer_of([[4.0, 3, 0, 0, 0, 0, 0, 0]])
    optimizer = still(layer)
    topology = ITOP(layer, optimizer, total_steps=10**6, every=1, drop_fraction=0.51, growth="gradient")
    assert topology.explored == 2 / 8
    step(layer, optimizer, topology, [0.0, 0, 9, 0, 0, 0, 0, 0])
    step(layer, optimizer, topology, [0.0, 0, 0, 0, 0, 0, 0, 9])
    assert layer.positions().tolist() == [0, 7]
    assert topology.explored == 4 / 8
    assert ITOP(layer, optimizer, total_steps=9).schedule.every == 1500
    assert ITOP(layer, optimizer, total_steps=9, growth="gradient").schedule.every == 4000


@pytest.mark.parametrize(("c", "second"), [(0.0, 2), (2.0, 3), (None, 3)])
def test_dstee_prefers_what_it_has_not_seen(c, second):
    """At t = 4 weight 2 (|g| 3, one round) meets weight 3 (|g| 2, never): 3 + c ln 4 / 2 against 2 + c ln 4."""
    layer = layer_of([[4.0, 1, 0, 0]])
    optimizer = still(layer)
    topology = DSTEE(layer, optimizer, total_steps=10**6, every=2, drop_fraction=0.51, c=c)
    for _ in range(2):
        step(layer, optimizer, topology, [0.0, 0, 3, 2])
    assert layer.positions().tolist() == [0, 2]
    assert topology.rounds[""].tolist() == [2, 1, 1, 0]
    for _ in range(2):
        step(layer, optimizer, topology, [0.0, 0, 3, 2])
    assert layer.positions().tolist() == [0, second]


def test_gmp_follows_its_cubic():
    """From 8 to 2 over 8 of 10 steps: 2 + 6 (1 - t/8)^3."""
    layer = layer_of([[8.0, -7, 6, -5, 4, -3, 2, -1]])
    topology = GMP(layer, still(layer), total_steps=10, every=2, sparsity=0.75, end=0.8)
    counts = []
    for _ in range(10):
        topology.step()
        counts.append(layer.nnz)
    assert counts == [8, 5, 5, 3, 3, 2, 2, 2, 2, 2]
    assert weights(layer) == [[8, -7, 0, 0, 0, 0, 0, 0]]


def test_gmp_opens_a_sparse_layer():
    layer = layer_of([[8.0, 0, 6, 0]])
    topology = GMP(layer, still(layer), total_steps=10, every=8)
    assert layer.positions().tolist() == [0, 1, 2, 3]
    assert weights(layer) == [[8, 0, 6, 0]]
    for _ in range(10):
        topology.step()
    assert layer.positions().tolist() == [0, 2]


def test_gmp_ends_at_the_densities_of_erk():
    """8x8 and 2x8 weights have densities k 16/64 and k 10/16, 26 k in all; 40 of 80 stay: k = 40/26, 24.6 and 15.4."""
    model = sparsify(
        nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 2, bias=False)), distribution={"0": 0, "1": 0}
    )
    topology = GMP(model, still(model), total_steps=4, every=1, sparsity=0.5, distribution="erk")
    for _ in range(4):
        topology.step()
    assert [layer.nnz for layer in model] == [25, 15]
    with pytest.raises(ValueError, match="expected sparsity with distribution='erk', got None"):
        GMP(model, still(model), total_steps=4, distribution="erk")


def test_gap_opens_one_partition_at_a_time():
    model = nn.Sequential(layer_of([[1.0, 2, 0, 0]]).requires_grad_(), layer_of([[3.0], [0], [0], [4]]))
    topology = GaP(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=8, every=2, partitions=2, end=0.75)
    counts = [(model[0].nnz, model[1].nnz)]
    for _ in range(8):
        topology.step()
        counts.append((model[0].nnz, model[1].nnz))
    assert counts == [(4, 2), (4, 2), (2, 4), (2, 4), (4, 2), (4, 2), (2, 2), (2, 2), (2, 2)]
    assert model[1].dense_weight().view(-1).tolist() == [3, 0, 0, 4]


def test_snfs_shares_by_momentum():
    """Both layers drop 2 of 4; |m| of what is stored is 3 to 1 on average, so 3 of the 4 freed go to the first."""
    model = nn.Sequential(layer_of([[4.0, 3, 2, 1, 0, 0, 0, 0]]), layer_of([[4.0, 3, 2, 1, 0, 0, 0, 0]]))
    topology = SNFS(model, torch.optim.SGD(model.parameters(), lr=0.0), total_steps=10**6, every=1)
    topology.momentum["0"].copy_(torch.tensor([3.0, 3, 3, -3, 1, 0, -2, 0]).view(8, 1, 1))
    topology.momentum["1"].copy_(torch.tensor([1.0, 1, 1, -1, 0, 0, 0, 5]).view(8, 1, 1))
    assert topology.update()
    assert model[0].positions().tolist() == [0, 1, 2, 3, 6]  # 3 3 -2 are the largest |m| outside the kept
    assert model[1].positions().tolist() == [0, 1, 7]
    assert topology.target == {"0": 5, "1": 3}


def test_snfs_momentum():
    layer = layer_of([[4.0, 1, 0, 0]])
    optimizer = still(layer)
    topology = SNFS(layer, optimizer, total_steps=10**6, every=100, beta=0.5)
    for _ in range(2):
        step(layer, optimizer, topology, [1.0, 2, -4, 8])
    assert topology.momentum[""].view(-1).tolist() == [0.75, 1.5, -3, 6]


def test_dsr_moves_its_threshold_and_the_freed_weights():
    """H = 1.5 drops 1 of 8; wanted are 4, so H doubles. The survivors, 4 and 3, share the one: the first gets it."""
    model = nn.Sequential(layer_of([[4.0, 3, 2, 2, 0, 0]]), layer_of([[4.0, 3, 2, 1, 0, 0]]))
    topology = DSR(model, still(model), total_steps=99, every=1, drop_fraction=0.5, threshold=1.5)
    assert topology.step()
    assert (model[0].nnz, model[1].nnz, topology.threshold) == (5, 3, 3.0)
    assert weights(model[0]) == [[4, 3, 2, 2, 0, 0]]
    topology.threshold = 100.0
    topology.step()
    assert topology.threshold == 50.0  # everything but each layer's largest went
    assert (model[0].dense_weight().max(), model[1].dense_weight().max()) == (4, 4)
    assert model[0].nnz + model[1].nnz == 8


def test_deepr_walks_and_rewires():
    layer = layer_of([[4.0, -3, 2, 0, 0, 0, 0, 0]])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    topology = DeepR(layer, optimizer, total_steps=99, l1=1.0, temperature=0.0)
    assert not topology.step()
    assert weights(layer) == [[3.5, -2.5, 1.5, 0, 0, 0, 0, 0]]
    layer.values.data[1] = 0.7  # positive where the sign is negative
    assert topology.step()
    assert set(layer.positions().tolist()) >= {0, 2} and layer.nnz == 3
    assert layer.dense_weight()[0, 0] == 3.0
    assert topology.signs[""][: layer.nnz].abs().eq(1).all()
    other = DeepR(layer, optimizer, total_steps=99, every=10**4, l1=0.0, temperature=0.01)
    before = layer.values.detach().clone()
    other.step()
    assert 0 < float((layer.values.detach() - before).abs().max()) < 0.5  # sqrt(2 lr T) = 0.1


def test_srigl_fan_in_by_hand():
    """Six weights on three outputs of four inputs: the second has 1 salient of the 2 x 0.6 it needs, so 3 + 3."""
    salient, held = torch.tensor([3, 1, 4]), torch.tensor([2, 2, 2])
    assert fan_in(salient, 6, 4, 0.6, held).tolist() == [3, 0, 3]
    assert fan_in(salient, 6, 4, 0.5, held).tolist() == [2, 2, 2]
    assert fan_in(salient, 7, 4, 0.6, held).tolist() == [4, 0, 3]
    assert fan_in(torch.tensor([0, 0, 5]), 6, 4, 1.0, held).tolist() == [3, 0, 3]  # one output alone cannot hold six


def test_srigl_ablates_an_output():
    rows = [[5.0, 4, 0, 0], [0.2, 0.1, 0, 0], [5, 4, 0, 0]]
    model = nn.Sequential(layer_of(rows, "fan-in"), layer_of([[1.0, 1, 0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    topology = SRigL(model, optimizer, total_steps=10**6, every=1, drop_fraction=0.34, gamma=0.6)
    model[0].values.grad = None
    assert step(model, optimizer, topology, [0.0, 0, 2, 3])  # dL/dy = 1, 1, 0 for the three outputs
    # 0.1 and 0.2 drop and the two gradients of 3 would grow: 3, 1 and 2 salient weights, the bar is 0.6 x 2.
    assert model[0].positions().tolist() == [0, 1, 3, 8, 9, 10]
    assert weights(model[0]) == [[5, 4, 0, 0], [0, 0, 0, 0], [5, 4, 0, 0]]


def test_topkast_sets_and_gradients():
    layer = layer_of([[5.0, 4, 0, 0, 0, 0]])
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    topology = TopKAST(layer, optimizer, total_steps=100, every=2, penalty=0.1)
    topology.reservoir[""].copy_(torch.tensor([0.0, 0, 3, 2, 1, 0.5]).view(6, 1, 1))
    topology.explorations[""].place(torch.tensor([2, 3]))
    with torch.no_grad():
        layer.values[2:] = torch.tensor([3.0, 2]).view(2, 1, 1)
    assert topology.backward_mask("").tolist() == [[True] * 4 + [False] * 2]
    x = torch.tensor([[0.0, 1, -5, 1, 9, 9]])
    y = layer(x)
    assert y.tolist() == [[4.0]]  # the explored 3 and 2 take no part
    y.sum().backward()
    expected = torch.tensor([0.0, 1, -5, 1]) + 0.1 * torch.tensor([5.0, 4, 3 * 3, 2 * 3])  # density 1/3
    assert torch.allclose(layer.values.grad.view(-1), expected)
    optimizer.step()  # 4.5 2.6 and 7.1 0.4
    assert not topology.step()
    topology.steps_done = 1
    assert topology.step()
    assert layer.positions().tolist() == [0, 2]
    assert torch.allclose(layer.values.view(-1), torch.tensor([4.5, 7.1, 2.6, 1.0]))
    assert topology.backward_mask("").tolist() == [[True, True, True, False, True, False]]
    assert topology.reservoir[""].view(-1)[3] == pytest.approx(0.4)


def test_topkast_ends_without_exploring():
    layer = layer_of([[5.0, 4, 0, 0, 0, 0]])
    topology = TopKAST(layer, still(layer), total_steps=2, every=1)
    topology.step()
    topology.step()
    assert torch.equal(topology.backward_mask(""), layer.mask())
    assert not layer.values[layer.nnz :].any()


def test_the_report_by_hand():
    layer = layer_of([[4.0, 1, 0, 0], [3, 0, 0, 0]])
    optimizer = still(layer)
    topology = RigL(layer, optimizer, total_steps=10**6, every=1, drop_fraction=0.34)
    step(layer, optimizer, topology, [0.0, 0, 0, 5], [1.0, 0.0])
    report, row = topology.report(), topology.report().layers[""]
    assert layer.positions().tolist() == [0, 3, 4]
    assert (row.size, row.nnz, row.updates, row.survived, row.grown) == (8, 3, 1, 2, 1)
    assert (row.explored, row.overlap_last, row.overlap_first) == (4 / 8, 2 / 3, 2 / 3)
    assert (row.fan_in, row.fan_out) == ((1, 1.5, 2), (0, 0.75, 2))
    assert (row.empty_outputs, row.empty_inputs) == (0, 2)
    assert report.explored == topology.explored == 0.5
    assert report.as_dict()["layers"][""]["nnz"] == 3
    assert "R_s of the model: 0.500" in str(report)
    assert (report.step, row.over_time) == (1, ((0, 3),))
    assert report.maps[""].tolist() == [[1, 0, 0, 1], [1, 0, 0, 0]]
    charts = ("explored", "stored/", "explored/", "kept by the last update/", "kept of the first mask/")
    assert report.scalars() == dict(zip(charts, (0.5, 3 / 8, 0.5, 2 / 3, 2 / 3), strict=True))
