"""Rollouts, dreams, controllers and their evolution; skipped where the extra `world` is not installed."""

import json
import math
import sys

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium", reason="the extra `world` is not installed")
pytest.importorskip("cma", reason="the extra `world` is not installed")

from gymnasium.utils.env_checker import check_env  # noqa: E402

from tacit.cli import main  # noqa: E402
from tacit.errors import DataError, RunError, TacitError  # noqa: E402
from tacit.models.latent.world_model import WorldModel  # noqa: E402
from tacit.spaces import Video  # noqa: E402
from tacit.tasks.dream import beside, dream, measure  # noqa: E402
from tacit.training.plan import seed_of  # noqa: E402
from tacit.worlds.controller import Actions, Controllers, returns  # noqa: E402
from tacit.worlds.dream import DreamEnv, Dreams  # noqa: E402
from tacit.worlds.evolution import evolve, scores_in  # noqa: E402
from tacit.worlds.reality import Environments, Reality, draw_cart_pole  # noqa: E402
from tacit.worlds.rollouts import STREAMS, Rollouts, collect  # noqa: E402


class Beacon(gymnasium.Env):
    """A light at one of three places; pointing at it pays 1, and nothing ends but by the limit of five steps."""

    action_space = gymnasium.spaces.Discrete(3)
    observation_space = gymnasium.spaces.Discrete(3)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(3))
        return self.place, {}

    def step(self, action):
        reward = float(action == self.place)
        self.place = int(self.np_random.integers(3))
        return self.place, reward, False, False, {}

    def render(self):
        shown = np.zeros((4, 12, 3), np.uint8)
        shown[:, 4 * self.place : 4 * self.place + 4] = 255
        return shown


gymnasium.register("Beacon-v0", Beacon, max_episode_steps=5)


@pytest.fixture
def model():
    torch.manual_seed(0)
    space = Video(8, 1, 12, 16)
    return WorldModel(space, latent=3, channels=(4,), hidden=(8,), memory=6, components=2, actions=2).eval()


@pytest.fixture
def cart_pole():
    return Environments("CartPole-v1", (12, 16))


# -- reality ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_rollouts_and_a_file_keeps_them(cart_pole, tmp_path):
    made = [collect(Environments("CartPole-v1", (12, 16)), 16 * 40, seed) for seed in (0, 0, 1)]
    assert torch.equal(made[0].frames, made[1].frames) and torch.equal(made[0].actions, made[1].actions)
    assert not torch.equal(made[0].frames, made[2].frames)
    made[0].save(tmp_path / "rollouts.npz")
    again = Rollouts.load(tmp_path / "rollouts.npz")
    assert all(torch.equal(getattr(again, name), value) for name, value in vars(made[0]).items())
    (tmp_path / "rollouts.npz").write_bytes(b"PK no")
    with pytest.raises(DataError, match="is damaged"):
        Rollouts.load(tmp_path / "rollouts.npz")


def test_streams_hold_whole_episodes_end_to_end(cart_pole):
    seen = collect(cart_pole, STREAMS * 60, 0)
    assert seen.first[:, 0].all() and seen.frames.shape == (STREAMS, 60, 1, 12, 16)
    # The action that ends an episode is on the last frame but one: the last is there, and pays nothing.
    ends = seen.done[:, :-2].nonzero()
    assert len(ends) > STREAMS
    assert all(seen.first[i, t + 2] == 1 and seen.reward[i, t + 1] == 0 for i, t in ends.tolist())
    assert (seen.first[:, 2:] == seen.done[:, :-2]).all()
    data = seen.clips(8, "cart-pole")
    assert data.x.shape == (STREAMS * 7, 8, 1, 12, 16) and data.target.shape == (STREAMS * 7, 8, 5)
    assert torch.equal(data.x[7], seen.frames[1, :8]) and torch.equal(data.target[8, :, :2], seen.actions[1, 8:16])
    with pytest.raises(DataError, match="shorter than clips of 61"):
        seen.clips(61, "cart-pole")


def test_cart_pole_is_drawn_where_it_is():
    state = np.array([[0.0, 9, 0.0, 9], [1.2, 0, 0.0, 0], [0.0, 0, 0.2, 0], [0.001, 0, 0.0, 0]])
    dark = 255 - draw_cart_pole(state, (24, 64)).float()[:, 0]
    pixel = 4.8 / 64
    column = (torch.arange(64) + 0.5) * pixel - 2.4
    centre = (dark.sum(1) * column).sum(1) / dark.sum((1, 2))
    assert centre[0] == pytest.approx(0, abs=1e-3) and centre[1] == pytest.approx(1.2, abs=1e-3)
    # The pole's tip, a unit long, is sin(0.2) to the right.
    row = dark[2, 24 - round((0.3 + 0.9) / pixel)]
    assert (row * column).sum() / row.sum() == pytest.approx(0.9 * math.tan(0.2), abs=0.02)
    # A thousandth of a unit, a 75th of a pixel, can be seen.
    assert not torch.equal(dark[0], dark[3])


def test_other_environments_are_asked_for_their_picture():
    beacon = Environments("Beacon-v0", (4, 6))
    beacon.reset(3, 0)
    frames = beacon.frames()
    assert frames.shape == (3, 1, 4, 6) and frames.dtype == torch.uint8
    places = [env.unwrapped.place for env in beacon.alive]
    assert frames[:, 0, 0, ::2].argmax(1).tolist() == places
    reward, ended, cut = beacon.step(torch.eye(3)[torch.tensor(places)])
    assert reward.tolist() == [1, 1, 1] and not ended.any() and not cut.any()


def test_environments_that_do_not_suit_are_refused():
    with pytest.raises(TacitError, match="'NoSuch-v0' cannot be made"):
        Environments("NoSuch-v0")
    with pytest.raises(TacitError, match="numbered or bounded vectors"):
        Actions.of(gymnasium.spaces.MultiBinary(2))


# -- controllers -----------------------------------------------------------------------------------------------------


def test_a_controllers_numbers_come_back_and_mean_what_they_say():
    vectors = torch.randn(5, Controllers.parameters(4, 3))
    controllers = Controllers.from_vectors(vectors, 3)
    assert torch.equal(controllers.vectors(), vectors)
    features = torch.randn(5, 4)
    for i, out in enumerate(controllers(features)):
        torch.testing.assert_close(out, controllers.weight[i] @ features[i] + controllers.bias[i])


@pytest.mark.parametrize(
    "space",
    [gymnasium.spaces.Discrete(3, start=2), gymnasium.spaces.Box(np.float32([-2, 0]), np.float32([2, 1]))],
    ids=["numbered", "bounded"],
)
def test_actions_are_numbers_and_back(space):
    actions = Actions.of(space)
    drawn = actions.drawn(20, np.random.default_rng(0))
    taken = actions.taken(drawn)
    assert all(space.contains(action) for action in taken)
    torch.testing.assert_close(torch.stack([actions.written(action) for action in taken]), drawn)
    outputs = torch.randn(6, actions.size)
    assert all(space.contains(action) for action in actions.taken(actions.numbers(outputs)))


def test_returns_are_those_of_episodes_one_by_one(model, cart_pole):
    controllers = Controllers.from_vectors(torch.randn(4, Controllers.parameters(9, 2)), 2)
    together = returns(Reality(cart_pole, model), controllers, 4, seed=3)
    for row in range(4):
        cart_pole.reset(4, 3)
        env, memory, total, over = cart_pole.alive[row], model.start(1, episode=True), 0.0, False
        cart_pole.alive = [env]
        while not over:
            z = model.vision.encode(cart_pole.frames())
            out = controllers.weight[row] @ torch.cat([z, memory.h], 1)[0] + controllers.bias[row]
            action = torch.eye(2)[out.argmax()][None]
            memory = model.remember(memory, z, action)
            reward, ended, cut = cart_pole.step(action)
            total, over = total + reward.item(), bool(ended | cut)
        assert total == together[row]
    assert measure(Reality(cart_pole, model), None, 8, 0)["mean"] > 5


# -- the dream -------------------------------------------------------------------------------------------------------


def test_the_dream_is_a_gymnasium_environment(model):
    env = DreamEnv(model, gymnasium.spaces.Discrete(2), limit=7, render_mode="rgb_array")
    with pytest.warns(UserWarning):  # that its observations have no bounds, and it no specification
        check_env(env)
    env.reset(seed=4)
    first = [env.step(1) for _ in range(7)]
    assert env.render().shape == (12, 16, 3) and first[-1][3]
    env.reset(seed=4)
    torch.randn(3)  # noise of others
    again = [env.step(1) for _ in range(7)]
    assert all(np.array_equal(a[0], b[0]) and a[1:3] == b[1:3] for a, b in zip(first, again, strict=True))


def test_dreams_end_as_often_as_m_says(model):
    with torch.no_grad():
        model.events[-1].weight.zero_()
        model.events[-1].bias.copy_(torch.tensor([2.0, math.log(0.25 / 0.75)]))
        model.reward_moments.copy_(torch.tensor([5.0, 3.0]))
    dreams = Dreams(model, Actions.of(gymnasium.spaces.Discrete(2)), limit=200)
    total = returns(dreams, None, 2000, 0)
    # Rewards of 5 + 3 · 2 a step, of a geometric number of steps with mean 4.
    assert (total % 11 == 0).all()
    assert total.mean().item() / 11 == pytest.approx(4, abs=4 * math.sqrt(12 / 2000))


# -- evolution -------------------------------------------------------------------------------------------------------


def test_evolution_finds_the_optimum_of_a_quadratic_and_goes_on_where_it_was(tmp_path):
    optimum = torch.linspace(-1, 1, 6)
    scale = 10 ** torch.linspace(0, 2, 6)
    asked = []

    def score(x, generation):
        asked.append(generation)
        return -(scale * (x - optimum).square()).sum(1)

    arguments = {"population": 10, "seed": 1}
    whole = evolve(score, 6, generations=100, **arguments)
    assert (whole - optimum).abs().max() < 1e-3
    part = evolve(score, 6, generations=40, path=tmp_path / "scores.npz", **arguments)
    assert (part - optimum).abs().max() > 1e-3
    asked.clear()
    again = evolve(score, 6, generations=100, path=tmp_path / "scores.npz", **arguments)
    assert torch.equal(again, whole) and asked == list(range(40, 100))
    with pytest.raises(DataError, match="holds an evolution with"):
        evolve(score, 6, generations=1, population=12, seed=1, path=tmp_path / "scores.npz")
    (tmp_path / "scores.npz").write_bytes(b"no")
    with pytest.raises(DataError, match="is damaged"):
        evolve(score, 6, generations=1, path=tmp_path / "scores.npz", **arguments)


def test_a_score_is_the_mean_over_episodes_that_no_other_generation_sees(model, cart_pole):
    vectors = torch.randn(3, Controllers.parameters(9, 2))
    world = Reality(cart_pole, model)
    found = scores_in(world, 2, seed=0)(vectors, 1)
    each = returns(world, Controllers.from_vectors(vectors, 2).repeat(2), 6, seed_of(0, "generation", 1))
    assert torch.equal(found, each.view(3, 2).mean(1))
    assert not torch.equal(found, scores_in(world, 2, seed=0)(vectors, 2))


# -- all of it -------------------------------------------------------------------------------------------------------

TINY = {"frames": 16 * 33, "clip": 8, "steps": 4, "generations": 2, "real_generations": 2, "population": 4}


def test_the_verb_makes_everything_and_goes_on_after_an_interruption(tmp_path, monkeypatch, capsys):
    arguments = {**TINY, "episodes": 1, "trials": 4, "rounds": 2, "out": tmp_path / "dream", "quiet": True}

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tacit.tasks.dream.measure", interrupt)
        dream("Beacon-v0", **arguments)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "dream").glob("*.npz")}
    picture = dream("Beacon-v0", **arguments)
    assert len(before) == 5 and before == {path: path.stat().st_mtime_ns for path in before}
    assert picture.stat().st_size > 100 and "evolved in the dream" in capsys.readouterr().out
    figures = json.loads((tmp_path / "dream" / "result.json").read_text())["returns"]
    assert set(figures) == {"random", "real", "dream", "dream-in-dream"}
    assert 0 <= figures["real"]["mean"] <= 5
    with pytest.raises(RunError, match="with seed 0, not 1: give another --out"):
        dream("Beacon-v0", seed=1, **arguments)


def test_what_is_typed_wrongly_is_said_in_a_line(capsys, tmp_path):
    assert main(["dream", "CartPole-v1", "--trials", "1", "--out", str(tmp_path)]) == 2
    assert "trials is 1: give at least 2" in capsys.readouterr().err


def test_without_the_extra_it_is_named(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith("tacit.worlds")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(TacitError, match=r"gymnasium is not installed: pip install 'tacit\[world\]'"):
        dream(out=tmp_path / "dream")


def test_the_picture_shows_a_single_episode(model, cart_pole, tmp_path):
    seen = collect(cart_pole, STREAMS * 24, 0)
    model.adapt(seen.clips(8, "cart-pole"))
    assert beside(model, seen, 8, tmp_path / "dream.png").exists()
