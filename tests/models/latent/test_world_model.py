import itertools
import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from tacit.data import Dataset
from tacit.errors import DataError, SpaceError, TacitError
from tacit.model import Batch
from tacit.models.latent.world_model import WorldModel
from tacit.spaces import Video

SMALL = {"latent": 3, "channels": (4,), "hidden": (8,), "memory": 6, "components": 2, "seen": 2}
SPACE = Video(6, 1, 4, 5, 3)


def built(space=SPACE, **arguments):
    """A model whose every part matters: M's weights are large, so that the past changes what comes."""
    torch.manual_seed(1)
    model = WorldModel(space, **SMALL | arguments)
    with torch.no_grad():
        for part in (model.cell, model.next):
            for p in part.parameters():
                p.mul_(3)
        model.begin.normal_()
    return model.eval()


def clips(rows=8, actions=2, space=SPACE):
    """Clips with random actions, of which frame 3 of every other one is an episode's first."""
    torch.manual_seed(2)
    x = torch.randint(space.levels, (rows, *space.shape), dtype=torch.uint8)
    target = torch.zeros(rows, space.frames, actions + 3)
    target[..., :actions] = torch.eye(actions)[torch.randint(actions, (rows, space.frames))]
    target[..., actions] = torch.randn(rows, space.frames) + 4
    target[::2, 3, -1] = 1
    target[::2, 2, -2] = 1
    return Dataset(space, x, name="clips", target=target)


def test_the_mixture_is_that_of_torch_and_integrates_to_one():
    model = built()
    z, actions = torch.randn(4, 6, 3), torch.zeros(4, 6, 0)
    mixtures, _, _ = model._follow(z, actions, torch.zeros(4, 6).bool())
    mean, log_scale, logits = mixtures.chunk(3, 2)
    # (batch, frames, components, latent) -> components last.
    reference = MixtureSameFamily(
        Categorical(logits=logits.transpose(2, 3)),
        Normal(mean.transpose(2, 3), log_scale.clamp(min=-7).exp().transpose(2, 3)),
    )
    torch.testing.assert_close(model._code_log_prob(mixtures, z), reference.log_prob(z).sum(2), rtol=1e-4, atol=1e-4)
    line = torch.linspace(-30, 30, 6001, dtype=torch.double)
    one = mixtures[0, 3].double()
    one[2:4] = one[2:4].clamp(-3, 1)  # what the grid resolves and holds
    one = one[None].expand(len(line), -1, -1)
    mass = model.mixture.log_prob(one, line[:, None].expand(-1, 3)).exp().sum(0) * (line[1] - line[0])
    torch.testing.assert_close(mass, torch.ones(3, dtype=torch.double), rtol=1e-6, atol=1e-6)


def test_all_frames_at_once_equal_one_after_the_other_and_an_episode_forgets_the_one_before():
    model, data = built(actions=2), clips()
    z, (actions, first) = torch.randn(8, 6, 3), model._control(data.target, 8)
    mixtures, after, last = model._follow(z, actions, first)
    for row in range(2):
        memory = model.start(1)
        for t in range(6):
            if first[row, t]:
                memory = model.start(1, episode=True)
            torch.testing.assert_close(model.foresee(memory)[0], mixtures[row, t])
            memory = model.remember(memory, z[row : row + 1, t], actions[row : row + 1, t])
            torch.testing.assert_close(memory.h[0], after[row, t])
        torch.testing.assert_close(last.h[row], memory.h[0])
    changed = z.clone()
    changed[:, :3] += 1
    again = model._follow(changed, actions, first)[0]
    assert torch.equal(again[::2, 3:], mixtures[::2, 3:])
    assert not torch.allclose(again[1::2, 4], mixtures[1::2, 4])


def integrated(model, x, steps=161, reach=9.0):
    """log p(x) of clips of two frames with one latent dimension, by summing over a grid of both codes."""
    line = torch.linspace(-reach, reach, steps)
    z = torch.cartesian_prod(line, line)[:, :, None]
    with torch.no_grad():
        mixtures, _, _ = model._follow(z, torch.zeros(len(z), 2, 0), torch.zeros(len(z), 2).bool())
        prior = model._code_log_prob(mixtures, z).sum(1) + 2 * math.log(float(line[1] - line[0]))
        found = []
        for clip in x:
            frames = [model._log_likelihood(z[:, t], clip[t].expand(len(z), -1, -1, -1)) for t in range(2)]
            found.append((prior + sum(frames)).logsumexp(0))
    return torch.stack(found)


def test_the_bound_lies_below_the_integrated_density_and_its_weights_average_to_it():
    model = built(Video(2, 1, 1, 2, 2), latent=1)
    with torch.no_grad():
        for p in model.vision.decoder.parameters():
            p.mul_(3)
        # A prior not much wider than q, whose weights have a variance, of scales that a grid of 0.1 can sum.
        model.next.weight[:2] *= 0.5
        model.next.bias[2:4] = -0.5
        model.next.weight[2:4] *= 0.1
    x = torch.tensor(list(itertools.product((0, 1), repeat=4)), dtype=torch.uint8).view(16, 2, 1, 1, 2)
    exact = integrated(model, x)
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-3)
    with torch.no_grad():
        weights = model.log_prob(x.repeat(4000, 1, 1, 1, 1)).view(4000, 16)
    assert (weights.mean(0) < exact + 0.01).all()
    assert (weights.mean(0) < exact - 0.02).any()
    error = weights.exp().std(0) / math.sqrt(4000)
    assert ((weights.exp().mean(0) - exact.exp()).abs() < 4 * error).all()
    assert (error < 0.05 * exact.exp()).all()
    drawn = model.sample(20_000).flatten(1).long()
    frequency = torch.bincount(drawn @ torch.tensor([8, 4, 2, 1]), minlength=16) / 20_000
    torch.testing.assert_close(frequency, exact.exp(), rtol=0, atol=0.015)


def test_m_learns_from_codes_and_moves_none_of_v():
    model, data = built(actions=2), clips()
    model.adapt(data)
    losses = model.loss(data.batch(torch.arange(8)))
    (losses["code"] + losses["reward"] + losses["done"]).backward(retain_graph=True)
    assert all(p.grad is None for p in model.vision.parameters())
    assert all((p.grad != 0).any() for p in model.cell.parameters())
    assert model.begin.grad.flatten(1).abs().sum(1).gt(0).all()


def test_what_did_not_happen_counts_for_nothing():
    model, data = built(actions=2), clips()
    model.adapt(data)

    def heads(target):
        torch.manual_seed(5)
        losses = model.loss(Batch(data.x, torch.arange(8), None, target))
        return torch.stack([losses["reward"], losses["done"]])

    target = data.target.clone()
    target[:, -1, 2:4] = 9  # what the last action brings is beyond the clip
    target[::2, 2, 2:4] = 9  # and nobody acts on an episode's last frame
    assert torch.equal(heads(target), heads(data.target))
    target[:, 1, 2:4] = 9
    assert (heads(target) != heads(data.target)).all()


def test_rewards_are_in_the_users_unit_and_actions_not_given_are_the_datas():
    model, data = built(actions=2), clips()
    model.adapt(data)
    with torch.no_grad():
        for p in model.events[-1].parameters():
            p.zero_()
    reward, _ = model.consequences(model.start(1), torch.randn(1, 3))
    assert reward.item() == pytest.approx(data.target[..., 2].mean().item())
    assert torch.equal(model._control(None, 5)[0].sum(2), torch.ones(5, 6))
    assert torch.isfinite(model.log_prob(data.x)).all()
    assert model.embed(data.x, data.target).shape == (8, 3 + 6)


def test_completions_follow_the_actions():
    model, data = built(actions=2, latent=2), clips()
    known = (torch.arange(6) < 2).view(-1, 1, 1, 1).expand(SPACE.shape)
    left, right = data.target.clone(), data.target.clone()
    left[..., :2], right[..., :2] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    dreams = []
    for target in (left, right, left):
        torch.manual_seed(3)
        dreams.append(model.complete(data.x, known, target=target))
    assert torch.equal(dreams[0], dreams[2]) and not torch.equal(dreams[0], dreams[1])
    assert all(torch.equal(dream[:, :2], data.x[:, :2]) for dream in dreams)
    assert model.complete(data.x, torch.zeros_like(known), target=left).shape == data.x.shape
    with pytest.raises(TacitError, match="known must be whole frames, from the first on"):
        model.complete(data.x, ~known)


def test_a_lower_temperature_dreams_nearer_to_the_centres():
    model = built()
    memory = model.start(2000)
    drawn = {t: model.mixture.sample(model.foresee(memory), t) for t in (1e-3, 0.5, 1.0)}
    assert drawn[1e-3].std(0).max() < 0.01 * drawn[1.0].std(0).max()
    assert (drawn[0.5].std(0) < drawn[1.0].std(0)).all()


def test_errors_say_what_to_give():
    with pytest.raises(TacitError, match="memory is 0: give at least 1"):
        WorldModel(SPACE, memory=0)
    with pytest.raises(TacitError, match="actions is -1: give at least 0"):
        WorldModel(SPACE, actions=-1)
    with pytest.raises(SpaceError, match="clips of 1 frame do not show what an action does"):
        WorldModel(Video(1, 1, 4, 4), actions=2)
    bare = clips()
    with pytest.raises(DataError, match=r"a target of \(6, 6\) is needed for 3 actions and clips has one of \(6, 5\)"):
        built(actions=3).adapt(bare)
    with pytest.raises(DataError, match="clips has none"):
        built(actions=2).adapt(Dataset(SPACE, bare.x, name="clips"))
