"""Bayesian networks against enumeration, brute force over all trees, counting by hand, and Pearl's burglar alarm."""

import itertools
import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from torch import Tensor

from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
from tacit.models.autoregressive._chow_liu import mutual_information, spanning_tree
from tacit.models.autoregressive.bayes_net import _SMOOTHINGS, BayesNet
from tacit.spaces import Images, Space, Vectors
from tacit.tasks.fit import fit
from tacit.tasks.run import Run


def burglary() -> BayesNet:
    """Burglary 0, earthquake 1, alarm 2, John calls 3, Mary calls 4."""
    net = BayesNet(Vectors(5), edges=("0>2", "1>2", "2>3", "2>4"))
    net.set_table(0, [0.999, 0.001])
    net.set_table(1, [0.998, 0.002])
    net.set_table(2, [[[0.999, 0.001], [0.71, 0.29]], [[0.06, 0.94], [0.05, 0.95]]])
    net.set_table(3, [[0.95, 0.05], [0.10, 0.90]])
    net.set_table(4, [[0.99, 0.01], [0.30, 0.70]])
    return net


def random(nodes: int, density: float) -> BayesNet:
    """A random graph of nodes of two or three values, numbered in no order, and random tables."""
    order = torch.randperm(nodes).tolist()
    pairs = itertools.combinations(order, 2)
    edges = tuple(f"{a}>{b}" for a, b in pairs if torch.rand(()) < density)
    net = BayesNet(Vectors(nodes), edges=edges)
    levels = torch.randint(2, 4, (nodes,)).tolist()
    for node in order:
        shape = [levels[v] for v in (*net.parents[node], node)]
        net.set_table(node, (torch.rand(shape, dtype=torch.float64) ** 2).softmax(-1) * 0.5 + 0.5 * _corner(shape))
    return net


def _corner(shape: list[int]) -> Tensor:
    """All mass on one value: some combinations become rare."""
    return torch.nn.functional.one_hot(torch.randint(shape[-1], shape[:-1]), shape[-1]).double()


def enumerated(net: BayesNet) -> Tensor:
    """The joint distribution, one axis a variable, by multiplying what `table` says, state by state."""
    tables = [net.table(node).tolist() for node in range(len(net.parents))]
    sizes = [len(net.values(node)) for node in range(len(net.parents))]
    joint = []
    for state in itertools.product(*map(range, sizes)):
        p = 1.0
        for node, parents in enumerate(net.parents):
            entry = tables[node]
            for v in (*parents, node):
                entry = entry[state[v]]
            p *= entry
        joint.append(p)
    return torch.tensor(joint, dtype=torch.float64).view(sizes)


def every(space: Images) -> Tensor:
    states = torch.tensor(list(itertools.product(range(space.levels), repeat=space.dimensions)), dtype=torch.uint8)
    return states.view(-1, *space.shape)


def fitted(data: Dataset, **arguments: object) -> BayesNet:
    net = BayesNet(data.space, **arguments)
    net.fit_exactly(data)
    return net.eval()


def pictures(rows: int, space: Images) -> Dataset:
    """Entries that copy the one before, mostly."""
    x = torch.randint(space.levels, (rows, space.dimensions))
    for d in range(1, space.dimensions):
        x[:, d] = torch.where(torch.rand(rows) < 0.7, x[:, d - 1], x[:, d])
    return Dataset(space, x.view(-1, *space.shape).to(torch.uint8))


# -- inference ---------------------------------------------------------------------------------------------------------


def test_the_burglar_alarm() -> None:
    net = burglary()
    assert net.query(0, {3: 1, 4: 1})[1].item() == pytest.approx(0.284172, abs=1e-6)
    # Of a call by one neighbour alone little follows; an earthquake explains the alarm away.
    assert net.query(0, {3: 1})[1].item() == pytest.approx(0.016284, abs=1e-6)
    assert net.query(0, {2: 1})[1].item() == pytest.approx(0.373551, abs=1e-6)
    assert net.query(0, {2: 1, 1: 1})[1].item() == pytest.approx(0.003268, abs=1e-6)
    assert net.query(2)[1].item() == pytest.approx(0.002516442, abs=1e-9)
    # Alarm, both call, neither burglary nor earthquake.
    assert net.log_prob(torch.tensor([[0.0, 0, 1, 1, 1]])).exp().item() == pytest.approx(0.000628111, rel=1e-5)


@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_elimination_equals_enumeration(density: float, seed: int) -> None:
    torch.manual_seed(seed)
    net = random(6, density)
    joint = enumerated(net)
    assert joint.sum().item() == pytest.approx(1, abs=1e-9)
    for asked in [(0,), (3, 1), (5, 0, 2), (4, 3, 2, 1)]:
        rest = [v for v in range(6) if v not in asked]
        for given in [(), rest, *([v] for v in rest)]:
            part = joint[tuple(slice(1, 2) if v in given else slice(None) for v in range(6))]
            kept = part.sum(rest)
            wanted = (kept / kept.sum()).permute(torch.tensor(asked).argsort().argsort().tolist())
            torch.testing.assert_close(net.query(asked, dict.fromkeys(given, 1)), wanted, rtol=1e-9, atol=1e-12)


def test_log_prob_is_the_product_of_the_tables() -> None:
    net = random(5, 0.5)
    joint = enumerated(net)
    states = torch.cartesian_prod(*(net.values(v) for v in range(5))).float()
    torch.testing.assert_close(net.log_prob(states).double().exp(), joint.flatten(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_follow_the_joint(temperature: float) -> None:
    net = random(4, 0.6)
    drawn = net.sample(20_000, temperature=temperature).long()
    for node in range(4):
        # Each draw is from its own table, at this temperature.
        if temperature != 1:
            net.set_table(node, (net.table(node).log() / temperature).softmax(-1))
    p = enumerated(net)
    place = torch.tensor(p.stride())
    count = (drawn @ place).bincount(minlength=p.numel())
    assert scipy.stats.chisquare(count.numpy(), 20_000 * p.flatten().numpy()).pvalue > 1e-3


@pytest.mark.parametrize("given", [(), (0,), (3, 1), (0, 2, 4)])
def test_what_is_completed_follows_the_conditional(given: tuple[int, ...]) -> None:
    net = random(5, 0.6)
    p = enumerated(net)
    known = torch.zeros(5, dtype=torch.bool)
    known[list(given)] = True
    states = torch.cartesian_prod(*(net.values(v) for v in range(5))).float()
    x = torch.full((2, 5), math.nan)
    x[0, known], x[1, known] = 0.0, 1.0
    drawn = net.complete(x.repeat_interleave(6000, 0), known)
    assert drawn.dtype == torch.float32
    for row, part in zip(x, drawn.split(6000), strict=True):
        assert (part[:, known] == row[known]).all()
        agree = (states == row)[:, known].all(1)
        count = (part.long() @ torch.tensor(p.stride())).bincount(minlength=p.numel())
        assert count[~agree].sum() == 0
        expected = 6000 * p.flatten()[agree] / p.flatten()[agree].sum()
        assert scipy.stats.chisquare(count[agree].numpy(), expected.numpy()).pvalue > 1e-3


def test_what_is_all_known_comes_back() -> None:
    net, x = burglary(), torch.tensor([[0.0, 0, 1, 1, 0]])
    assert torch.equal(net.complete(x, torch.ones(5, dtype=torch.bool)), x)


# -- structure and tables ----------------------------------------------------------------------------------------------


def trees(nodes: int) -> list[list[tuple[int, int]]]:
    """All spanning trees, from Prüfer's sequences."""
    found = []
    for sequence in itertools.product(range(nodes), repeat=nodes - 2):
        degree = [1 + sequence.count(v) for v in range(nodes)]
        edges = []
        for v in sequence:
            leaf = degree.index(1)
            edges.append((leaf, v))
            degree[leaf] -= 1
            degree[v] -= 1
        a, b = (v for v in range(nodes) if degree[v] == 1)
        found.append([*edges, (a, b)])
    return found


def test_mutual_information_counted_by_hand() -> None:
    x = torch.randint(3, (50, 4))
    x[:, 3] = x[:, 0] % 2
    found = mutual_information(x.to(torch.int16), 3)
    for i, j in itertools.product(range(4), repeat=2):
        total = 0.0
        for a, b in itertools.product(range(3), repeat=2):
            both = ((x[:, i] == a) & (x[:, j] == b)).double().mean()
            if both > 0:
                total += both * (both / ((x[:, i] == a).double().mean() * (x[:, j] == b).double().mean())).log()
        assert found[i, j].item() == pytest.approx(float(total), abs=1e-9)


@pytest.mark.parametrize("nodes", [4, 5])
def test_the_spanning_tree_is_the_greatest_of_all(nodes: int) -> None:
    for _ in range(20):
        weight = torch.rand(nodes, nodes, dtype=torch.float64)
        weight = weight + weight.T
        found = spanning_tree(weight).tolist()
        total = sum(weight[v, p].item() for v, p in enumerate(found) if p >= 0)
        best = max(sum(weight[a, b].item() for a, b in tree) for tree in trees(nodes))
        assert len(trees(nodes)) == nodes ** (nodes - 2)
        assert total == pytest.approx(best) and found.count(-1) == 1


def test_chow_liu_finds_the_tree_of_greatest_likelihood() -> None:
    x = torch.randint(2, (300, 4))
    x[:, 2] = torch.where(torch.rand(300) < 0.8, x[:, 0], x[:, 2])
    x[:, 1] = torch.where(torch.rand(300) < 0.7, x[:, 2], x[:, 1])
    x[:, 3] = torch.where(torch.rand(300) < 0.6, x[:, 2], x[:, 3])
    data = Dataset(Images(1, 2, 2, 2), x.view(-1, 1, 2, 2).to(torch.uint8))
    ours = fitted(data, smoothing=1e-6).log_prob(data.x).mean().item()

    def likelihood(tree: list[tuple[int, int]]) -> float:
        # Rooted anywhere a tree is the same distribution: here at node 0.
        edges, reached = [], {0}
        while len(reached) < 4:
            for a, b in tree:
                if (a in reached) != (b in reached):
                    edges.append(f"{a}>{b}" if a in reached else f"{b}>{a}")
                    reached |= {a, b}
        return fitted(data, edges=tuple(edges), smoothing=1e-6).log_prob(data.x).mean().item()

    found = [likelihood(tree) for tree in trees(4)]
    assert ours == pytest.approx(max(found), abs=1e-5)
    assert max(found) > min(found) + 0.05


def test_tables_are_counted_and_smoothed() -> None:
    data = pictures(60, Images(1, 1, 3, 3))
    net = fitted(data, edges=("0>2", "1>2"), smoothing=0.5)
    x = data.x.flatten(1)
    for a, b, c in itertools.product(range(3), repeat=3):
        here = (x[:, 0] == a) & (x[:, 1] == b)
        p = ((here & (x[:, 2] == c)).sum() + 0.5) / (here.sum() + 1.5)
        assert net.table(2)[a, b, c].item() == pytest.approx(p.item(), abs=1e-6)


def test_the_smoothing_is_that_of_the_greatest_leave_one_out_likelihood() -> None:
    data = pictures(25, Images(1, 1, 3, 3))
    scores = dict.fromkeys(_SMOOTHINGS, 0.0)
    for alpha, row in itertools.product(_SMOOTHINGS, range(25)):
        rest = Dataset(data.space, data.x[torch.arange(25) != row])
        net = fitted(rest, structure="chain", smoothing=alpha)
        scores[alpha] += net.log_prob(data.x[row : row + 1]).item()
    best = max(scores, key=scores.__getitem__)
    assert _SMOOTHINGS[0] < best < _SMOOTHINGS[-1]
    expected = fitted(data, structure="chain", smoothing=best)
    assert torch.equal(fitted(data, structure="chain").log_table, expected.log_table)


@pytest.mark.parametrize("structure", ["tree", "chain", "independent"])
@pytest.mark.parametrize("space", [Images(1, 2, 2, 3), Images(2, 1, 3, 2), Images(1, 1, 2, 32)])
def test_masses_sum_to_one(space: Images, structure: str) -> None:
    net = fitted(pictures(80, space), structure=structure)
    assert net.log_prob(every(space)).double().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_a_tree_knows_what_a_chain_does_not() -> None:
    first = torch.randint(2, (500, 1))
    x = torch.cat([first, torch.randint(2, (500, 1)), first], 1).view(-1, 1, 1, 3).to(torch.uint8)
    data = Dataset(Images(1, 1, 3, 2), x)
    nats = {s: -fitted(data, structure=s).log_prob(x).mean().item() for s in ("tree", "chain", "independent")}
    assert nats["tree"] == pytest.approx(2 * math.log(2), abs=0.02)
    assert nats["chain"] == pytest.approx(3 * math.log(2), abs=0.02)
    assert nats["independent"] == pytest.approx(3 * math.log(2), abs=0.02)


# -- columns of a table ------------------------------------------------------------------------------------------------


def mixed(rows: int) -> Dataset:
    """A category in {3, …, 6} and a real feature that follows it."""
    kind = torch.randint(3, 7, (rows,)).float()
    return Dataset(Vectors(2), torch.stack([kind, 10 * kind.square() + 5 * torch.randn(rows)], 1))


def test_a_density_of_categories_and_reals_integrates_to_one() -> None:
    net = fitted(mixed(600))
    x = torch.linspace(-2000, 2500, 90_001, dtype=torch.float64)[:-1] + 0.025
    mass = {}
    for kind in range(3, 7):
        rows = torch.stack([torch.full_like(x, kind), x], 1).float()
        mass[kind] = net.log_prob(rows).double().exp().sum().item() * 0.05
    assert sum(mass.values()) == pytest.approx(1, abs=2e-3)
    torch.testing.assert_close(torch.tensor(list(mass.values())).double(), net.query(0), rtol=0, atol=1e-3)


def test_categories_stay_categories_and_reals_go_on_beyond_what_was_seen() -> None:
    data = mixed(600)
    net = fitted(data)
    assert net.values(0).tolist() == [3, 4, 5, 6]
    drawn = net.sample(3000)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn[:, 0], drawn[:, 0].round())
    for kind in range(3, 7):
        share = (data.x[:, 0] == kind).float().mean()
        assert (drawn[:, 0] == kind).float().mean().item() == pytest.approx(share.item(), abs=0.05)
        mean = drawn[drawn[:, 0] == kind, 1].median()
        assert mean.item() == pytest.approx(10 * kind**2, abs=15)
    assert net.log_prob(torch.tensor([[9.0, 1e5], [-1.0, 0.0]])).isfinite().all()


def test_the_chosen_number_of_cells_is_near_the_best_on_other_rows() -> None:
    data, test = mixed(1500), mixed(4000)
    ours = fitted(data).log_prob(test.x).mean().item()
    rivals = [fitted(data, bins=bins).log_prob(test.x).mean().item() for bins in (2, 4, 8, 16, 32)]
    assert ours > max(rivals) - 0.03
    assert ours > min(rivals) + 0.2


def test_a_real_column_is_completed_from_a_category_and_back() -> None:
    net = fitted(mixed(600))
    x = torch.tensor([[4.0, math.nan]]).expand(4000, 2)
    drawn = net.complete(x, torch.tensor([True, False]))
    cells = net.bins.index(drawn)[:, 1].bincount(minlength=len(net.values(1)))
    expected = 4000 * net.query(1, {0: 4})
    keep = expected > 1
    assert scipy.stats.chisquare(cells[keep], expected[keep] * cells[keep].sum() / expected[keep].sum()).pvalue > 1e-3
    x = torch.tensor([[math.nan, 250.0]]).expand(1000, 2)
    drawn = net.complete(x, torch.tensor([False, True]))
    assert (drawn[:, 0] == 5).float().mean() > 0.9 and (drawn[:, 1] == 250).all()


def test_constant_columns_and_very_few_rows() -> None:
    x = torch.tensor([[1.0, 0.5, 2.25], [1.0, 0.5, 7.5]])
    net = fitted(Dataset(Vectors(3), x))
    assert net.log_prob(x).isfinite().all() and net.sample(4).isfinite().all()
    assert fitted(Dataset(Vectors(3), x[:1])).log_prob(x[:1]).isfinite().all()


def test_a_single_variable() -> None:
    x = torch.randn(100, 1)
    assert fitted(Dataset(Vectors(1), x)).log_prob(x).mean().item() == pytest.approx(-1.4, abs=0.3)
    pixel = Dataset(Images(1, 1, 1, 2), (x[:, :, None, None] > 0).to(torch.uint8))
    assert fitted(pixel).log_prob(pixel.x).mean().item() == pytest.approx(-math.log(2), abs=0.05)


# -- runs and errors ---------------------------------------------------------------------------------------------------


def test_a_graph_goes_through_a_run_and_back(tmp_path: Path) -> None:
    data = mixed(300)
    run = fit("bayes-net", data, edges=("1>0",), out=tmp_path / "run", quiet=True, pictures=0)
    again = Run(tmp_path / "run").model
    assert again.parents == [[1], []]
    assert torch.equal(run.model.log_prob(data.x), again.log_prob(data.x))
    twin = BayesNet(Vectors(5), edges=("0>2", "1>2", "2>3", "2>4"))
    twin.load_state_dict(burglary().state_dict())
    assert torch.equal(twin.query(0, {3: 1, 4: 1}), burglary().query(0, {3: 1, 4: 1}))


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (("0-1",), "edges holds '0-1': write each as PARENT>CHILD, two numbers of columns, such as 0>2"),
        (("0>a",), "edges holds '0>a': write each"),
        (("0>1>2",), "edges holds '0>1>2': write each"),
        (("0>3",), "edges holds '0>3', but columns are 0 to 2: name one of these"),
        (("0>1", "1>2", "2>0"), "edges closes the cycle .*>.*>.*: leave one of its edges out"),
        (("1>1",), "edges closes the cycle 1>1"),
    ],
)
def test_edges_that_make_no_graph(edges: tuple[str, ...], message: str) -> None:
    with pytest.raises(TacitError, match=message):
        BayesNet(Vectors(3), edges=edges)


def test_clear_errors() -> None:
    with pytest.raises(TacitError, match="structure is 'star': give tree, chain or independent"):
        BayesNet(Vectors(3), structure="star")
    with pytest.raises(TacitError, match="bins is 1: give at least 2"):
        BayesNet(Vectors(3), bins=1)
    with pytest.raises(TacitError, match="smoothing is 0: give a small positive number"):
        BayesNet(Vectors(3), smoothing=0)
    with pytest.raises(SpaceError, match="bayes-net takes images of at most 32 levels, not 256: bring them to fewer"):
        BayesNet(Images(1, 8, 8))
    with pytest.raises(TacitError, match="bins is 8, which is for real columns, not for images: leave it out"):
        BayesNet(Images(1, 8, 8, 2), bins=8)
    net = burglary()
    for wrong, message in [
        (lambda: net.query(7), "there is no variable 7: they are 0 to 4"),
        (lambda: net.query(0, {9: 1}), "there is no variable 9"),
        (lambda: net.query(0, {3: 2}), "variable 3 cannot be 2: its values are 0 to 1"),
        (lambda: net.query(0, {3: 0.5}), "variable 3 cannot be 0.5"),
        (lambda: net.query(0, {0: 1}), "variable 0 is asked for twice, or given as evidence too: name it once"),
        (lambda: net.query((1, 1)), "variable 1 is asked for twice"),
        (lambda: net.set_table(5, [1.0]), "there is no variable 5"),
        (lambda: net.set_table(3, [0.5, 0.5]), r"the table of variable 3 has shape \(2,\), not \(2, values\)"),
        (lambda: net.set_table(0, [0.5, 0.6]), "variable 0 is no distribution: let each of its last axis sum to 1"),
        (lambda: net.set_table(0, [1.5, -0.5]), "variable 0 is no distribution"),
        (lambda: net.sample(2, temperature=0), "temperature is 0: give a number above 0"),
        (
            lambda: net.complete(torch.zeros(1, 5), torch.ones(4, dtype=torch.bool)),
            r"known is bool of shape \(4,\): give a bool mask of shape \(5,\)",
        ),
    ]:
        with pytest.raises(TacitError, match=message):
            wrong()
    with pytest.raises(SpaceError, match="observations hold 5"):
        BayesNet(Images(1, 2, 2, 2)).log_prob(torch.full((1, 1, 2, 2), 5))


def test_what_cannot_be_is_refused() -> None:
    net = BayesNet(Vectors(2), edges=("0>1",))
    net.set_table(0, [1.0, 0.0])
    net.set_table(1, [[0.5, 0.5], [0.0, 1.0]])
    with pytest.raises(TacitError, match="what is given has probability 0 under this network"):
        net.query(1, {0: 1})
    with pytest.raises(TacitError, match="what is given has probability 0 under this network"):
        net.complete(torch.tensor([[1.0, 0.0]]), torch.tensor([True, False]))
    assert net.query(0, {1: 1}).tolist() == [1, 0]


def test_tables_and_inference_that_are_too_large_are_refused() -> None:
    space: Space = Images(1, 5, 6, 2)
    with pytest.raises(
        SpaceError, match="the table of variable 29 given its 29 parents would have 1,073,741,824 cells"
    ):
        BayesNet(space, edges=tuple(f"{d}>29" for d in range(29)))
    # A grid of 30 × 30 pixels, each given those above and to the left, has no narrow place.
    side = 30
    across = [f"{side * i + j}>{side * i + j + 1}" for i in range(side) for j in range(side - 1)]
    down = [f"{side * i + j}>{side * (i + 1) + j}" for i in range(side - 1) for j in range(side)]
    net = BayesNet(Images(1, side, side, 2), edges=(*across, *down))
    with pytest.raises(TacitError, match="this network is too dense: exact inference needs a table of 2"):
        net.query(0, {side * side - 1: 1})
    # Sampling needs no inference.
    assert net.sample(2).shape == (2, 1, side, side)
