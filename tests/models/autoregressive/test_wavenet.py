"""WaveNet's own oracles: its reach, μ-law, the samples' own likelihood, and an equation-by-equation loop."""

from __future__ import annotations

import math
import wave

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.model import Batch
from tacit.models.autoregressive.pixelcnn import PixelCNN
from tacit.models.autoregressive.tcn import TCN
from tacit.models.autoregressive.wavenet import WaveNet
from tacit.nn.causal1d import CausalCache, CausalConv1d
from tacit.nn.mulaw import CODES, MuLaw
from tacit.spaces import Images, Tokens, Waveform
from tacit.tasks.evaluate import measure
from tacit.tasks.fit import fit
from tacit.tasks.sample import sample
from tacit.training import pictures

# Of the contract's tests.
SMALL = {"features": 8, "skip_features": 16, "dilations": (1, 2, 4)}

EVERY_SAMPLE = torch.arange(-32768, 32768).to(torch.int16)


def random_model(space, cls=WaveNet, std=0.3, **arguments):
    model = cls(space, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
    return model.eval()


def depends_on(model, length: int) -> torch.Tensor:
    """Which entries of a sequence its last conditional depends on, (length,) bool."""
    x = torch.randint(0, 7, (1, length))
    found = torch.zeros(length, dtype=torch.bool)
    with torch.no_grad():
        before = model.conditionals(x, None)[0, :, -1]
        for t in range(length):
            other = x.clone()
            other[0, t] = (other[0, t] + 1) % 7
            found[t] = (model.conditionals(other, None)[0, :, -1] != before).any()
    return found


# -- the network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dilations", "stacks", "kernel"), [((1, 2, 4), 1, 2), ((1, 2, 4), 2, 2), ((1, 3), 1, 4)])
def test_its_reach_is_that_of_its_dilations(dilations, stacks, kernel):
    model = random_model(Tokens(7, 40), features=6, skip_features=8, dilations=dilations, stacks=stacks, kernel=kernel)
    reach = 1 + stacks * sum(dilations) * (kernel - 1)
    assert model.receptive_field == reach
    # The last of 40 entries sees the `reach` entries before it, and never itself.
    expected = torch.zeros(40, dtype=torch.bool)
    expected[39 - reach : 39] = True
    assert torch.equal(depends_on(model, 40), expected)


def test_the_papers_network_by_a_loop_over_its_equations():
    model = random_model(Tokens(5, 9), features=3, skip_features=4, dilations=(1, 2, 4), kernel=2, classes=2).double()
    x, label = torch.randint(0, 5, (2, 9)), torch.tensor([0, 1])
    with torch.no_grad():
        found = model.readout(model.hidden(x, label))
        for row in range(2):
            h = [model.symbol.weight[5], *(model.symbol.weight[s] for s in x[row, :-1])]
            skips = [model.skip.bias for _ in h]
            for layer, matrix in zip(model.layers, model.skip.weight[:, :, 0].split(3, 1), strict=True):
                dilation, following = layer.conv.dilation[0], []
                for t, current in enumerate(h):
                    y = layer.conv.bias + layer.label.weight[label[row]] + layer.conv.weight[:, :, 1] @ current
                    if t >= dilation:
                        y = y + layer.conv.weight[:, :, 0] @ h[t - dilation]
                    z = y[:3].tanh() * y[3:].sigmoid()
                    skips[t] = skips[t] + matrix @ z
                    following.append(
                        current if layer.residual is None else current + layer.residual.weight[:, :, 0] @ z
                    )
                h = following
            for t, s in enumerate(skips):
                y = model.output[1].weight[:, :, 0] @ s.relu() + model.output[1].bias
                y = model.output[3].weight[:, :, 0] @ y.relu() + model.output[3].bias
                torch.testing.assert_close(found[row, :, t], y)


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (2, 1), (2, 5), (3, 4), (5, 2), (3, 20), (2, 40)])
def test_the_product_is_the_convolution(kernel, dilation):
    conv, x = CausalConv1d(3, 4, kernel, dilation), torch.randn(2, 3, 31)
    padded = F.pad(x, ((kernel - 1) * dilation, 0))
    torch.testing.assert_close(conv(x), F.conv1d(padded, conv.weight, conv.bias, dilation=dilation))


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (2, 1), (2, 5), (3, 4), (5, 2)])
def test_the_ring_gives_what_the_convolution_gives(kernel, dilation):
    conv = CausalConv1d(3, 4, kernel, dilation)
    x, extra, scale = torch.randn(2, 3, 31), torch.randn(2, 4), torch.randn(4)
    cache, found = CausalCache(conv, 2, extra, scale), []
    for t in range(31):
        cache.input.copy_(x[:, :, t])
        found.append(cache.output().clone())
    expected = (conv(x) + extra[:, :, None]) * scale[:, None]
    torch.testing.assert_close(torch.stack(found, 2), expected, rtol=1e-5, atol=1e-5)


# -- recordings --------------------------------------------------------------------------------------------------------


def test_mu_law_codes():
    law = MuLaw()
    codes = law.encode(EVERY_SAMPLE)
    assert (codes.diff() >= 0).all() and int(codes[0]) == 0 and int(codes[-1]) == CODES - 1
    assert torch.equal(torch.bincount(codes, minlength=CODES), law.sizes)
    assert int(law.sizes.sum()) == 65536 and int(law.sizes.min()) >= 1
    for x in (-32768, -20000, -1, 0, 1, 77, 32767):
        companded = math.copysign(math.log1p(255 * abs(x) / 32768) / math.log1p(255), x)
        assert int(law.encode(torch.tensor(x))) == math.floor((companded + 1) / 2 * 255 + 0.5)
    # What is drawn from a code has that code, and all its samples are drawn.
    drawn = law.draw(codes.repeat(20))
    assert drawn.dtype == torch.int16
    assert torch.equal(law.encode(drawn), codes.repeat(20))
    loudest, quietest = int(law.sizes.argmax()), int(law.encode(torch.tensor(0)))
    for code in (loudest, quietest):
        assert len(law.draw(torch.full((50_000,), code)).unique()) == int(law.sizes[code])


@pytest.mark.parametrize(("cls", "small"), [(WaveNet, {"skip_features": 8, "dilations": (1, 2)}), (TCN, {"layers": 1})])
@pytest.mark.parametrize("classes", [None, 2])
def test_masses_of_all_samples_sum_to_one(cls, small, classes):
    model = random_model(Waveform(1, 8000), cls, features=8, classes=classes, **small)
    with torch.no_grad():
        assert model.log_prob(EVERY_SAMPLE[:, None]).double().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_a_recording_has_the_mass_of_its_codes_over_those_who_share_them():
    model = random_model(Waveform(6, 8000), features=4, skip_features=4, dilations=(1, 2), classes=2)
    x = torch.randint(-32768, 32768, (5, 6)).to(torch.int16)
    codes = model.mu_law.encode(x)
    with torch.no_grad():
        logits = model.conditionals(codes, torch.tensor([1] * 5)).double().log_softmax(1)
        expected = logits.gather(1, codes[:, None])[:, 0] - model.mu_law.sizes.double().log()[codes]
        torch.testing.assert_close(model.log_prob(x, label=1).double(), expected.sum(1), rtol=1e-5, atol=1e-4)
    batch = Batch(x, torch.arange(5), torch.ones(5, dtype=torch.long))
    torch.testing.assert_close(model.loss(batch).total.detach().double(), -expected.sum(1).mean(), rtol=1e-5, atol=1e-4)


def test_codes_are_drawn_by_their_masses_and_samples_evenly_within():
    model = random_model(Waveform(1, 8000), features=4, skip_features=4, dilations=(1,), std=1.0)
    with torch.no_grad():
        p = model.log_prob(EVERY_SAMPLE[:, None]).double().exp()
    drawn = model.sample(40_000).long()[:, 0] + 32768
    observed = torch.bincount(drawn, minlength=65536).double() / len(drawn)
    # Of 64 stretches of samples, each code's own bounds ignored: five standard errors.
    each, mass = observed.view(64, -1).sum(1), p.view(64, -1).sum(1)
    assert ((each - mass).abs() <= 5 * (mass / len(drawn)).sqrt() + 1e-4).all()


@pytest.mark.parametrize("cls", [WaveNet, TCN])
def test_cached_parameters_of_a_recording_and_the_known_part_of_a_completion(cls):
    model = random_model(Waveform(50, 8000), cls, std=0.2, classes=3)
    x, label = torch.randint(-32768, 32768, (3, 50)).to(torch.int16), torch.tensor([0, 2, 3])
    codes = model.entries(x)
    with torch.no_grad():
        state, before = model.init_state(3, label), None
        steps = []
        for t in range(50):
            parameters, state = model.step(state, before)
            steps.append(parameters)
            before = codes[:, t]
        torch.testing.assert_close(torch.stack(steps, 2), model.conditionals(codes, label), rtol=1e-4, atol=1e-4)
    known = torch.arange(50) < 20
    done = model.complete(x, known)
    assert done.dtype == torch.int16 and torch.equal(done[:, :20], x[:, :20])


# -- longer than trained for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [WaveNet, TCN])
@pytest.mark.parametrize("space", [Tokens(5, 6), Waveform(6, 8000)])
def test_sequences_of_any_length(cls, space):
    model = random_model(space, cls, classes=2, label_dropout=0.1)
    for length in (2, 6, 40):
        x = model.sample(3, length=length, label=1, guidance=0.5)
        assert x.shape == (3, length) and x.dtype == space.torch_dtype
    # Beyond the trained length the caches still are the network.
    entries = model.entries(model.sample(2, length=40, label=1))
    label = torch.tensor([1, 1])
    with torch.no_grad():
        state, before = model.init_state(2, label), None
        for t in range(40):
            parameters, state = model.step(state, before)
            before = entries[:, t]
        torch.testing.assert_close(parameters, model.conditionals(entries, label)[:, :, -1], rtol=1e-4, atol=1e-4)
    with pytest.raises(TacitError, match="length is 0: give at least 1"):
        model.sample(1, length=0)


@pytest.mark.parametrize("cls", [WaveNet, TCN, PixelCNN])
def test_images_are_as_large_as_they_are(cls):
    with pytest.raises(TacitError, match="length is 30, but this model draws the 12 entries that it was fitted on"):
        cls(Images(1, 3, 4, 2)).sample(1, length=30)


# -- from fit to a file that can be played -----------------------------------------------------------------------------


def test_recordings_are_learnt_measured_written_and_drawn(tmp_path):
    label = torch.arange(60) % 2
    tone = 8000 * torch.sin(torch.arange(64) * (label[:, None] + 1) / 5 + torch.rand(60, 1))
    data = Dataset(Waveform(64, 4000), tone.to(torch.int16), label, name="tones")
    small = {"features": 8, "skip_features": 16, "dilations": (1, 2, 4, 8)}
    brief = {"steps": 60, "batch_size": 16, "learning_rate": 1e-2, "warmup": 1, "pictures": 1, "quiet": True}
    run = fit("wavenet", data, out=tmp_path / "run", classes=2, **brief, **small)
    assert list((tmp_path / "run" / "samples").glob("step-*.png"))
    measured = measure(run, data)
    assert measured.likelihood.kind == "exact" and measured.likelihood.bits_per_dimension < 13
    assert measured.accuracy is not None
    path = sample(tmp_path / "run", count=11, out=tmp_path / "out")
    assert path.name == "samples-00.wav" and len(list(path.parent.glob("*.wav"))) == 11
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels(), file.getnframes()) == (4000, 2, 1, 64)
        found = np.frombuffer(file.readframes(64), "<i2")
    assert (found == np.load(tmp_path / "out" / "samples.npy")[0]).all()
    pictures.waves(data.x[:1], 4000, tmp_path / "one.png")


def test_clear_errors():
    for wrong in ({"features": 0}, {"stacks": 0}, {"kernel": 0}, {"skip_features": 0}):
        with pytest.raises(TacitError, match=f"{next(iter(wrong))} is 0: give at least 1"):
            WaveNet(Tokens(5, 4), **wrong)
    for dilations in ((), (1, 0)):
        with pytest.raises(TacitError, match="dilations is 0: give at least 1"):
            WaveNet(Tokens(5, 4), dilations=dilations)
