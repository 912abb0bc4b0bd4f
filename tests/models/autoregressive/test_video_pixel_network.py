"""Video pixel networks: multiplicative units and the LSTM as written, frames, dependence over time, films."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import SpaceError, TacitError
from tacit.model import Batch
from tacit.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from tacit.models.autoregressive.video_pixel_network import (
    Encoder,
    MultiplicativeBlock,
    MultiplicativeUnit,
    VideoPixelNetwork,
)
from tacit.spaces import Images, Space, Tokens, Video, from_dict
from tacit.tasks.compare import compare
from tacit.tasks.evaluate import measure
from tacit.tasks.fit import fit
from tacit.tasks.sample import sample
from tacit.training import pictures

# Of the contract's tests.
SMALL = {"encoder_features": 4, "dilations": (1, 2), "features": 8, "layers": 2, "first": 3, "readout_features": 8}

SPACE = Video(4, 2, 4, 5, 3)


def random_model(space: Space = SPACE, **arguments: object) -> VideoPixelNetwork:
    torch.manual_seed(0)
    small = {"features": 8, "encoder_features": 4, "layers": 2, "dilations": (1, 2), "readout_features": 8}
    model = VideoPixelNetwork(space, **small | arguments)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def clips(rows: int, space: Space = SPACE) -> Tensor:
    return torch.randint(0, space.levels or 0, (rows, *space.shape), dtype=torch.uint8)


def convolved(weight: Tensor, bias: Tensor, x: Tensor, dilation: int = 1) -> Tensor:
    return F.conv2d(x, weight, bias, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)


def test_a_multiplicative_unit_is_the_papers():
    torch.manual_seed(0)
    unit, h = MultiplicativeUnit(3, 2), torch.randn(2, 3, 6, 7)
    a, b, c, d = (
        convolved(w, z, h, 2) for w, z in zip(unit.gates.weight.chunk(4), unit.gates.bias.chunk(4), strict=True)
    )
    g1, g2, g3, u = torch.sigmoid(a), torch.sigmoid(b), torch.sigmoid(c), torch.tanh(d)
    torch.testing.assert_close(unit(h), g1 * torch.tanh(g2 * h + g3 * u))
    block, h = MultiplicativeBlock(3, 1), torch.randn(2, 6, 4, 5)
    first, second = block.units
    torch.testing.assert_close(block(h), h + block.up(second(first(block.down(h)))))


def test_contexts_are_the_states_of_a_convolutional_lstm():
    torch.manual_seed(0)
    encoder, x = Encoder(2, 3, (1, 2)), torch.randn(2, 4, 2, 5, 6)
    h = cell = torch.zeros(2, 3, 5, 6)
    contexts = encoder.contexts(x)
    for t in range(4):
        torch.testing.assert_close(contexts[:, t], h)
        found = torch.cat([encoder.blocks(encoder.input(x[:, t])), h], 1)
        i, f, o, g = (
            convolved(w, b, found)
            for w, b in zip(encoder.gates.weight.chunk(4), encoder.gates.bias.chunk(4), strict=True)
        )
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        h = o.sigmoid() * cell.tanh()


def test_likelihoods_of_frames_sum_to_that_of_the_clip_and_know_nothing_of_later_frames():
    model, x = random_model(), clips(3)
    with torch.no_grad():
        each = model.frame_log_prob(x)
        assert each.shape == (3, 4)
        torch.testing.assert_close(each.sum(1), model.log_prob(x))
        later = torch.cat([x[:, :2], clips(3)[:, 2:]], 1)
        torch.testing.assert_close(model.frame_log_prob(later)[:, :2], each[:, :2])
        # Of a shorter clip the factors are the same: a clip's prefix is a clip.
        shorter = random_model(Video(2, *SPACE.shape[1:], 3))
        shorter.load_state_dict(model.state_dict())
        torch.testing.assert_close(shorter.frame_log_prob(x[:, :2]), each[:, :2])


def test_frames_of_a_mixture_are_its_own_conditionals():
    model, x = random_model(classes=3, label_dropout=0.1), clips(4)
    model.log_prior.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    with torch.no_grad():
        each = model.frame_log_prob(x)
        torch.testing.assert_close(each.sum(1), model.log_prob(x))
        shorter = random_model(Video(2, *SPACE.shape[1:], 3), classes=3, label_dropout=0.1)
        shorter.load_state_dict(model.state_dict())
        torch.testing.assert_close(each[:, :2].sum(1), shorter.log_prob(x[:, :2]))
        of_one = model.frame_log_prob(x, label=1)
        torch.testing.assert_close(of_one.sum(1), model.log_prob(x, label=1))


def test_without_context_frames_are_independent_pictures():
    """And the decoder is then GatedPixelCNN itself, name for name."""
    model, x = random_model(context=False, kernel=3), clips(3)
    sizes = {"features": 8, "layers": 2, "kernel": 3, "readout_features": 8}
    picture = GatedPixelCNN(Images(*SPACE.shape[1:], 3), **sizes, places=False).eval()
    picture.load_state_dict(model.state_dict())
    with torch.no_grad():
        of_frames = torch.stack([picture.log_prob(x[:, t]) for t in range(4)], 1)
        torch.testing.assert_close(model.frame_log_prob(x), of_frames)
    assert random_model(Video(1, 1, 4, 4, 2)).encoder is None, "a single frame has none before it"


def test_a_frame_depends_on_all_of_earlier_frames_and_not_on_later_ones():
    space = Video(4, 1, 3, 3, 4)
    model, x = random_model(space, features=16), clips(1, space)
    frames, size = space.frames, space.dimensions // space.frames
    moved = torch.zeros(frames, size, frames, size, dtype=torch.bool)
    with torch.no_grad():
        for _ in range(6):
            x = clips(1, space)
            before = model.conditionals(x, None)[0].flatten(2)
            for t in range(frames):
                for i in range(size):
                    other = x.clone()
                    other[0, t].view(-1)[i] = (other[0, t].view(-1)[i] + 1) % 4
                    moved[t, i] |= (model.conditionals(other, None)[0].flatten(2) != before).any(0)
    for t in range(frames):
        assert not moved[t, :, :t].any(), "a frame depends on a later one"
        assert torch.equal(moved[t, :, t], torch.ones(size, size, dtype=torch.bool).triu(1))
        assert moved[t, :, t + 1 :].all(), "a frame is blind to some of an earlier one"


def test_sampling_encodes_each_frame_once(monkeypatch):
    model, encoded = random_model(), []
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, x, memory: encoded.append(len(x)) or forward(self, x, memory))
    x = model.sample(5)
    assert encoded == [5, 5, 5] and x.shape == (5, *SPACE.shape) and x.dtype == torch.uint8


def test_completion_goes_on_from_the_first_frames():
    """A dot that goes to the right, one pixel a frame: once learnt, all follows from the first."""
    space = Video(5, 1, 2, 6, 2)
    row, start = torch.arange(4) % 2, torch.arange(4) // 2
    x = torch.zeros(4, *space.shape, dtype=torch.uint8)
    for t in range(5):
        x[torch.arange(4), t, 0, row, start + t] = 1
    torch.manual_seed(0)
    model = VideoPixelNetwork(space, features=8, encoder_features=8, layers=2, dilations=(1,), first=3)
    model.adapt(Dataset(space, x))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimiser.zero_grad()
        model.loss(Batch(x, torch.arange(4))).total.backward()
        optimiser.step()
    with torch.no_grad():
        first, *later = (-model.eval().frame_log_prob(x).mean(0)).tolist()
    assert first == pytest.approx(math.log(4), abs=0.1) and max(later) < 0.1
    known = torch.zeros(space.shape, dtype=torch.bool)
    known[0] = True
    drawn = model.complete(x.repeat(10, 1, 1, 1, 1), known)
    assert torch.equal(drawn[:, 0], x.repeat(10, 1, 1, 1, 1)[:, 0])
    assert (drawn == x.repeat(10, 1, 1, 1, 1)).flatten(1).all(1).float().mean() > 0.8


def test_clear_errors():
    with pytest.raises(TacitError, match="dilations is 0: give at least 1"):
        VideoPixelNetwork(SPACE, dilations=(1, 0))
    with pytest.raises(TacitError, match="kernel is 4: give an odd number"):
        VideoPixelNetwork(SPACE, kernel=4)
    with pytest.raises(SpaceError, match="video-pixel-network takes video, not tokens"):
        VideoPixelNetwork(Tokens(5, 4))  # type: ignore[arg-type]
    model = random_model()
    with pytest.raises(SpaceError, match="do not fit"):
        model.frame_log_prob(clips(2)[:, :3])
    with pytest.raises(TacitError, match="fitted without classes"):
        model.frame_log_prob(clips(2), label=1)
    with pytest.raises(TacitError, match="frame after frame, each row after row from the top"):
        model.complete(clips(2), torch.arange(4).view(4, 1, 1, 1).expand(SPACE.shape) > 1)


# -- the house around it -----------------------------------------------------------------------------------------------


def test_the_space():
    assert from_dict(SPACE.to_dict()) == SPACE and SPACE.shape == (4, 2, 4, 5) and SPACE.torch_dtype == torch.uint8


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_clips_as_strips_and_as_a_film(tmp_path, channels):
    space = Video(4, channels, 3, 5, 2)
    x = torch.zeros(6, *space.shape, dtype=torch.uint8)
    x[:, torch.arange(4), :, 0, torch.arange(4)] = 1
    assert pictures.strips(x, 2).size[0] > pictures.strips(x, 2).size[1] / 2
    path = pictures.draw(VideoPixelNetwork(space), x, Dataset(space, x), tmp_path / "step.png")
    strip = np.asarray(Image.open(path).convert("RGB"))
    scale = strip.shape[1] // (4 * 6)
    assert strip.shape[:2] == (scale * 6 * 4, scale * 4 * 6), "a row a clip, a column a frame"
    pictures.film(x, 2, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 4 and film.info["loop"] == 0


def test_fit_evaluate_and_sample(tmp_path, capsys):
    space = Video(3, 1, 5, 4, 4)
    np.save(tmp_path / "clips.npy", np.random.default_rng(0).integers(0, 256, (40, 3, 1, 5, 6), dtype=np.uint8))
    run = fit("video-pixel-network", str(tmp_path / "clips.npy"), steps=2, out=tmp_path / "run", quiet=True, layers=2)
    assert run.space == Video(3, 1, 5, 6)
    found = measure(run)
    assert found.likelihood is not None and found.likelihood.kind == "exact" and found.likelihood.rows == 4
    path = sample(tmp_path / "run", count=5)
    assert path.name == "samples.gif" and np.load(path.with_name("samples.npy")).shape == (5, 3, 1, 5, 6)
    with pytest.raises(SpaceError, match=r"no measure of samples of video: fit .*video-pixel-network"):
        compare(Dataset(space, clips(60, space)), out=tmp_path / "c")
    assert not (tmp_path / "c").exists()
