"""Sketch-RNN: its mixture, its loss point by point, its sequences, and what can be done with a drawing."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from tacit.data import Dataset
from tacit.errors import CapabilityError, DataError, SpaceError, TacitError
from tacit.model import Batch, Progress
from tacit.models.latent.sketch_rnn import SketchRNN, mixture_log_prob, mixture_sample
from tacit.spaces import Strokes
from tacit.training.plan import reseed

SMALL = {"latent": 6, "encoder": 12, "decoder": 16, "mixtures": 3}
LENGTH = 8


def drawings(rows: int = 12, *, whole: bool = False, least: int = 1) -> torch.Tensor:
    """Drawings of random lengths, the first of `least` points, the last as long as the space."""
    generator = torch.Generator().manual_seed(5)
    x = 7 * torch.randn(rows, LENGTH, 3, generator=generator)
    x = x.round() if whole else x
    x[..., 2] = (torch.rand(rows, LENGTH, generator=generator) < 0.3).float()
    lengths = torch.randint(least, LENGTH + 1, (rows,), generator=generator)
    lengths[0], lengths[-1] = least, LENGTH
    x[torch.arange(LENGTH) >= lengths[:, None]] = torch.tensor([0.0, 0.0, 2.0])
    return x


def model(**arguments) -> SketchRNN:
    found = SketchRNN(Strokes(LENGTH), **{**SMALL, **arguments})
    x = drawings(40)
    label = None if found.classes is None else torch.arange(40) % found.classes
    found.adapt(Dataset(Strokes(LENGTH), x, label))
    return found.eval()


def batch(x: torch.Tensor) -> Batch:
    return Batch(x, torch.arange(len(x)))


# -- the mixture -----------------------------------------------------------------------------------------------------


def components(parameters: torch.Tensor) -> MixtureSameFamily:
    """The same mixture, as torch's distributions have it."""
    logits, mx, my, lx, ly, r = parameters.double().chunk(6, -1)
    rho, sx, sy = r.tanh(), lx.exp(), ly.exp()
    covariance = torch.stack([sx**2, rho * sx * sy, rho * sx * sy, sy**2], -1).unflatten(-1, (2, 2))
    return MixtureSameFamily(Categorical(logits=logits), MultivariateNormal(torch.stack([mx, my], -1), covariance))


def test_the_mixture_is_torchs():
    parameters, offsets = torch.randn(50, 30), 2 * torch.randn(50, 2)
    expected = components(parameters).log_prob(offsets.double())
    torch.testing.assert_close(mixture_log_prob(parameters, offsets).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_mixture_integrates_to_one():
    side = torch.linspace(-12, 12, 601)
    grid = torch.cartesian_prod(side, side)
    parameters = 0.7 * torch.randn(1, 12)
    mass = mixture_log_prob(parameters.expand(len(grid), -1), grid).double().exp().sum() * (24 / 600) ** 2
    assert mass == pytest.approx(1, abs=1e-3)


def test_extreme_parameters_stay_finite():
    parameters = torch.full((1, 6), 0.0)
    parameters[:, 3:5], parameters[:, 5] = -100.0, 100.0
    parameters.requires_grad_()
    found = mixture_log_prob(parameters, torch.tensor([[0.0, 0.0]]))
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(parameters.grad).all()


def test_draws_have_the_mixtures_moments_and_temperature_scales_the_variance():
    parameters = torch.tensor([[0.0, 1.0, -2.0, math.log(2.0), math.log(0.5), 0.8]]).expand(40_000, -1)
    x = mixture_sample(parameters, 0.25)
    rho = math.tanh(0.8)
    expected = 0.25 * torch.tensor([[4.0, rho], [rho, 0.25]])
    torch.testing.assert_close(x.mean(0), torch.tensor([1.0, -2.0]), atol=0.03, rtol=0)
    torch.testing.assert_close(x.T.cov(), expected, atol=0.03, rtol=0.03)
    assert torch.equal(mixture_sample(parameters[:2], 0.0), torch.tensor([[1.0, -2.0]]).expand(2, -1))


def test_temperature_sharpens_the_weights():
    # Two components far apart with odds 1 to 3: at temperature 1/2 the odds are squared.
    parameters = torch.tensor([[0.0, math.log(3.0), -50, 50, 0, 0, 0, 0, 0, 0, 0, 0.0]]).expand(20_000, -1)
    share = (mixture_sample(parameters, 0.5)[:, 0] > 0).float().mean()
    assert share == pytest.approx(0.9, abs=0.01)


# -- the loss, point by point -----------------------------------------------------------------------------------------


def naive(found: SketchRNN, x: torch.Tensor, z: torch.Tensor | None) -> torch.Tensor:
    """Log p(S|z) of each drawing in its normalised offsets, by the cell, row by row: (batch, 2)."""
    sums = torch.zeros(len(x), 2, dtype=torch.double)
    for row, drawing in enumerate(x):
        context = torch.zeros(1, 0) if z is None else z[row : row + 1]
        h, c = found._state(context)
        before = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]])
        for dx, dy, pen in drawing.tolist():
            h, c = found.decoder.step(torch.cat([before, context], 1), h, c)
            out = found.output(h)[0]
            sums[row, 1] += out[:3].log_softmax(0)[int(pen)]
            if pen == 2:
                break
            point = torch.tensor([dx, dy]) / found.scale
            sums[row, 0] += components(out[None, 3:]).log_prob(point[None].double())[0]
            before = torch.cat([point, torch.eye(3)[int(pen)]])[None]
    return sums


@torch.no_grad()
@pytest.mark.parametrize("latent", [0, 6])
def test_the_loss_is_that_of_a_loop_over_points(latent):
    found, x = model(latent=latent), drawings()
    reseed(1)
    losses = found.loss(batch(x))
    z = None
    if latent:
        mean, log_var = found._posterior(found._normalised(x, noisy=False))
        reseed(1)
        torch.rand(len(x), LENGTH, 2)  # what whole numbers would have been given
        z = mean + (0.5 * log_var).exp() * torch.randn(len(x), latent)
        kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var)
        torch.testing.assert_close(losses["kl"], kl.mean())
    expected = -naive(found, x, z).sum(1).mean() / LENGTH
    torch.testing.assert_close(losses["reconstruction"].double(), expected, rtol=1e-4, atol=1e-5)
    if latent:
        torch.testing.assert_close(losses.total, losses["reconstruction"] + 0.5 * kl.mean().clamp(min=0.2))


@torch.no_grad()
def test_the_density_is_in_the_datas_units():
    found, x = model(latent=0), drawings()
    points = (x[..., 2] != 2).sum(1)
    assert found.density == "exact" and found.scale > 5
    expected = naive(found, x, None).sum(1) - 2 * points * found.scale.double().log()
    torch.testing.assert_close(found.log_prob(x).double(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_one_point_and_all_lengths_make_a_proper_distribution():
    """Of drawings of at most 2 points: no point, one, two; offsets on a grid, the rest by enumeration."""
    found = SketchRNN(Strokes(2), latent=0, decoder=8, mixtures=2).eval()
    side = torch.linspace(-9, 9, 41)
    cell = (side[1] - side[0]).item() ** 2
    grid = torch.cartesian_prod(side, side)
    none = torch.tensor([[[0.0, 0, 2], [0, 0, 2]]])
    total = found.log_prob(none).exp().sum()
    coarse = grid[::9]
    for pen in (0.0, 1.0):
        first = torch.cat([grid, torch.full((len(grid), 1), pen)], 1)[:, None]
        one = torch.cat([first, none[:, 1:].expand(len(grid), -1, -1)], 1)
        ends = found.log_prob(one).exp()
        # Whatever follows a first point adds to the first point's own probability.
        h, c = found._state(torch.zeros(1, 0))
        h, _ = found.decoder.step(torch.tensor([[0.0, 0, 1, 0, 0]]), h, c)
        out = found.output(h)
        alone = mixture_log_prob(out[:, 3:].expand(len(grid), -1), grid) + out[0, :3].log_softmax(0)[int(pen)]
        for at in coarse[[5, 90]]:
            begun = torch.tensor([at[0], at[1], pen]).expand(2 * len(grid), 1, 3)
            second = torch.cat([grid.repeat(2, 1), torch.tensor([0.0, 1.0]).repeat_interleave(len(grid))[:, None]], 1)
            two = found.log_prob(torch.cat([begun, second[:, None]], 1)).exp().sum() * cell
            where = (grid == at).all(1).nonzero()[0, 0]
            torch.testing.assert_close(two + ends[where], alone[where].exp(), rtol=2e-3, atol=1e-7)
        total = total + alone.exp().sum() * cell
    assert total == pytest.approx(1, abs=2e-3)


@torch.no_grad()
def test_the_pens_process_is_proper():
    """The chance of each length, by enumeration of pens whose offsets do not matter, sums to one."""
    found = model(latent=0)
    found.decoder.input.weight[:, :2] = 0
    for bias, value in zip((0, 1, 2), (0.2, 0.1, -0.3), strict=True):
        found.output.bias[bias] = value
    total = torch.zeros((), dtype=torch.double)
    beginnings = [torch.zeros(0)]
    for length in range(5):
        most = min(length + 1, 4)  # those that have not ended after four rows are counted as they are
        for pens in beginnings:
            x = torch.zeros(1, LENGTH, 3)
            x[..., 2] = 2
            x[0, :length, 2] = pens
            total += found._log_likelihood(x, torch.zeros(1, 0), most)[0, 1].double().exp()
        beginnings = [torch.cat([pens, torch.tensor([p])]) for pens in beginnings for p in (0.0, 1.0)]
    assert total == pytest.approx(1, abs=1e-5)


# -- sequences and learning -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_what_fills_a_drawing_up_is_read_in_neither_direction():
    short = model()
    long = SketchRNN(Strokes(3 * LENGTH), **SMALL).eval()
    long.load_state_dict(short.state_dict())
    x = drawings()
    longer = torch.cat([x, torch.tensor([0.0, 0.0, 2.0]).expand(len(x), 2 * LENGTH, 3)], 1)
    torch.testing.assert_close(short.encode(x), long.encode(longer))
    for one in range(len(x)):  # nor does a row look at its neighbours
        torch.testing.assert_close(short.encode(x[one : one + 1]), short.encode(x)[one : one + 1])
    mean, _ = short._posterior(short._normalised(x, noisy=False))
    reference = torch.nn.LSTM(5, SMALL["encoder"], bidirectional=True)
    for suffix, network in zip(("", "_reverse"), short.encoder, strict=True):
        getattr(reference, f"weight_ih_l0{suffix}").copy_(network.input.weight)
        getattr(reference, f"weight_hh_l0{suffix}").copy_(network.recurrent.weight)
        getattr(reference, f"bias_ih_l0{suffix}").copy_(network.input.bias)
        getattr(reference, f"bias_hh_l0{suffix}").zero_()
    one = short._normalised(x[3:4, : int((x[3, :, 2] != 2).sum())], noisy=False)
    five = torch.cat([one[..., :2], torch.eye(3)[one[..., 2].long()]], 2)
    h = reference(five.transpose(0, 1))[1][0]
    torch.testing.assert_close(short.posterior(h.transpose(0, 1).flatten(1))[0, :6], mean[3])


def test_annealing_in_closed_form():
    found = model(kl_start=0.1, anneal=0.5, kl_weight=2.0, free=0.0, scaling=0.0, drop_points=0.0, dropout=0.0)
    assert found.eta == pytest.approx(0.1)
    eta, x = 0.1, drawings()
    for step in range(1, 6):
        found.after_step(Progress(step, 0, 0.5))
        eta += (1 - eta) / 2
        assert found.eta == pytest.approx(eta)
    losses = found.train().loss(batch(x))
    torch.testing.assert_close(losses.total, losses["reconstruction"] + 2 * eta * losses["kl"])


def test_free_bits_stop_the_divergences_gradient():
    found = model(free=50.0)
    weight = found.posterior.weight
    with_kl = torch.autograd.grad(found.loss(batch(drawings())).total, weight)[0]
    losses = (reseed(3), found.loss(batch(drawings())))[1]
    free = torch.autograd.grad(losses.total, weight)[0]
    reseed(3)
    alone = torch.autograd.grad(found.loss(batch(drawings()))["reconstruction"], weight)[0]
    torch.testing.assert_close(free, alone)
    assert with_kl.shape == free.shape


def test_dropped_points_leave_the_drawing_where_it_was():
    found, x = model(scaling=0.0, drop_points=0.7), drawings(200, least=3)
    y = found.augment(x)
    assert torch.equal(found.space.check_values(y), y)
    before, after = ((d[..., 2] != 2).sum(1) for d in (x, y))
    assert (after <= before).all() and (after < before).any()
    # All strokes are still there and end where they ended.
    for a, b in zip(x, y, strict=True):
        ends = [d[..., :2].cumsum(0)[d[:, 2] == 1] for d in (a, b)]
        torch.testing.assert_close(*ends)
        torch.testing.assert_close(a[:, :2].sum(0), b[:, :2].sum(0))
    untouched = model(scaling=0.0, drop_points=0.0)
    assert torch.equal(untouched.augment(x), x)


def test_points_are_dropped_only_within_strokes():
    found = model(scaling=0.0, drop_points=0.999)
    x = torch.tensor([[[1.0, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0], [5, 0, 0], [6, 0, 1], [7, 0, 0], [8, 0, 1]]])
    y = found.augment(x)[0]
    assert y[:, 0].tolist() == [1, 2, 12, 6, 7, 8, 0, 0] and y[:, 2].tolist() == [0, 0, 0, 1, 0, 1, 2, 2]


def test_scaling_stays_within_its_bounds():
    found, x = model(scaling=0.25, drop_points=0.0), drawings(200)
    ratio = (found.augment(x)[:, 0, :2] / x[:, 0, :2]).flatten()
    assert ratio.min() > 0.75 and ratio.max() < 1.25 and ratio.std() > 0.1


@torch.no_grad()
def test_recurrent_dropout_is_of_what_is_added_to_the_memory_while_learning():
    found = model(latent=0, dropout=0.25)
    x, lengths = torch.randn(3, LENGTH, 5), torch.tensor([2, LENGTH, 5])
    begun = found._state(torch.zeros(3, 0))
    reseed(4)
    kept = (torch.rand(3, LENGTH, SMALL["decoder"]) >= 0.25) / 0.75
    reseed(4)
    features, site, ends = found.decoder.train()(x, lengths, begun, 0.25)
    for row, length in enumerate(lengths.tolist()):
        h, c = (part[row : row + 1] for part in begun)
        for i in range(length):
            gates = found.decoder.input(x[row, i]) + found.decoder.recurrent(h)
            a, k, new, s = gates.chunk(4, 1)
            c = k.sigmoid() * c + a.sigmoid() * new.tanh() * kept[row, i]
            h = s.sigmoid() * c.tanh()
            torch.testing.assert_close(features[site == row * LENGTH + i], h)
        torch.testing.assert_close(ends[row], h[0])
    assert len(site) == 15
    evaluated = found.decoder.eval()(x, lengths, begun, 0.25)[0]
    assert torch.equal(evaluated, found.decoder(x, lengths, begun, 0.0)[0]) and not torch.equal(evaluated, features)


@torch.no_grad()
def test_whole_numbers_are_bounded_by_noise_and_come_back_whole():
    x = drawings(40, whole=True)
    found = SketchRNN(Strokes(LENGTH), latent=0, decoder=8, mixtures=2)
    found.adapt(Dataset(Strokes(LENGTH), x))
    found.eval()
    assert found.density == "bound"
    drawn = found.sample(20)
    assert torch.equal(drawn, drawn.round()) and torch.equal(found.space.check_values(drawn), drawn)
    # One point of a drawing: the bound is below the log of the square's mass, and near it where the density is flat.
    one = torch.zeros(4000, LENGTH, 3)
    one[..., 2] = 2
    one[:, 0] = torch.tensor([4.0, -3.0, 1.0])
    found.grain.zero_()
    jitter = one.clone()
    jitter[:, 0, :2] += torch.rand(4000, 2) - 0.5
    mass = found.log_prob(jitter).exp().mean().log()
    found.grain.fill_(1)
    assert found.log_prob(one).mean() <= mass + 0.02


# -- what can be done with it -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_more_importance_samples_give_a_tighter_bound():
    found, x = model(), drawings()
    bounds = [torch.stack([found.importance_weighted(x, k) for _ in range(8)]).mean() for k in (1, 8)]
    assert bounds[0] < bounds[1]


@torch.no_grad()
@pytest.mark.parametrize("latent", [0, 6])
def test_a_completion_keeps_its_beginning(latent):
    found, x = model(latent=latent), drawings()
    known = (torch.arange(LENGTH) < 3)[:, None].expand(-1, 3)
    done = found.complete(x, known)
    assert torch.equal(done[:, :3], x[:, :3]) and torch.equal(found.space.check_values(done), done)
    over = x[:, 2, 2] == 2  # what had ended stays as it was
    assert over.any() and torch.equal(done[over], x[over])
    assert not torch.equal(done[~over], x[~over])
    assert torch.equal(found.complete(x, torch.ones(LENGTH, 3, dtype=torch.bool)), x)
    assert found.complete(x, torch.zeros(LENGTH, 3, dtype=torch.bool)).shape == x.shape
    for wrong in (known.flip(0), known & torch.tensor([True, True, False])):
        with pytest.raises(TacitError, match="known is not the first points of a drawing"):
            found.complete(x, wrong)


@torch.no_grad()
def test_completions_are_draws_from_the_conditional():
    """The second point's mean, given the first, is the mixture's."""
    found = model(latent=0)
    x = drawings()[-1:].expand(6000, -1, -1)
    done = found.complete(x, (torch.arange(LENGTH) < 1)[:, None].expand(-1, 3))
    features, _, _ = found._read(found._normalised(x[:1], noisy=False), torch.zeros(1, 0), torch.tensor([2]))
    out = found.output(features[1])
    pens = torch.bincount(done[:, 1, 2].long(), minlength=3) / 6000
    torch.testing.assert_close(pens, out[:3].softmax(0), atol=0.03, rtol=0)
    there = done[done[:, 1, 2] != 2, 1, :2].mean(0)
    torch.testing.assert_close(there, (components(out[None, 3:]).mean[0] * found.scale).float(), atol=0.5, rtol=0)


@torch.no_grad()
def test_classes_mix_and_are_told_apart():
    found, x = model(classes=3), drawings()
    reseed(1)
    joint = torch.stack([(reseed(1), found.log_prob(x, label=y))[1] for y in range(3)], 1) + found.log_prior
    reseed(1)
    torch.testing.assert_close(found.log_prob(x), joint.logsumexp(1))
    reseed(1)
    torch.testing.assert_close(found.classify(x), joint.softmax(1))
    assert found.sample(3, label=2).shape == (3, LENGTH, 3)
    assert found.complete(x, (torch.arange(LENGTH) < 2)[:, None].expand(-1, 3)).shape == x.shape
    assert found.decode(found.encode(x), label=1).shape == x.shape
    with pytest.raises(TacitError, match="3 is not a class"):
        found.sample(2, label=3)
    with pytest.raises(DataError, match="classes is 3, but bare has none"):
        found.adapt(Dataset(Strokes(LENGTH), x, name="bare"))


def test_a_decoder_alone_has_features_but_no_codes():
    found, x = model(latent=0), drawings()
    assert found.embed(x).shape == (len(x), SMALL["decoder"])
    for verb, given in ((found.encode, x), (found.decode, torch.zeros(2, 6))):
        with pytest.raises(CapabilityError, match="fitted with latent=0, the decoder alone"):
            verb(given)


def test_sentences():
    found = model()
    with pytest.raises(SpaceError, match=r"drawings of up to 12 points do not fit Strokes\(length=8\): load them with"):
        found.log_prob(torch.zeros(1, 12, 3))
    with pytest.raises(SpaceError, match="points behind their end"):
        found.encode(torch.tensor([0.0, 0.0, 2.0, 1.0, 0.0, 0.0] * 4).view(1, LENGTH, 3))
    with pytest.raises(TacitError, match="temperature is -1"):
        found.sample(2, temperature=-1.0)
    for wrong in ({"latent": -1}, {"mixtures": 0}, {"dropout": 1.0}, {"anneal": 1.5}, {"drop_points": 1.0}):
        with pytest.raises(TacitError, match=f"{next(iter(wrong))} is"):
            model(**wrong)
