"""Char-RNN: lanes that go on where they stopped, gradients that stop, and a text read as one."""

import itertools

import pytest
import torch

from tacit.data import Dataset
from tacit.errors import TacitError
from tacit.model import Batch
from tacit.models.autoregressive.char_rnn import CharRNN
from tacit.spaces import Images, Tokens
from tacit.tasks.fit import fit
from tacit.tasks.run import Run

# Of the contract's tests.
SMALL = {"features": 24, "embedding": 8}

SPACE = Tokens(6, 10)


def text(characters: int = 997) -> Dataset:
    return Dataset(SPACE, torch.randint(6, (characters,)).to(torch.uint8), vocabulary=tuple("abcdef"))


def small(cell: str = "lstm", **arguments) -> CharRNN:
    torch.manual_seed(0)
    return CharRNN(SPACE, cell=cell, features=8, embedding=4, **{"dropout": 0.0, "restart": 0.0} | arguments)


def test_every_lane_goes_on_where_it_stopped():
    data = text()
    batches = list(small().batches(data, 7, torch.Generator().manual_seed(3)))
    for before, after in itertools.pairwise(batches):
        assert torch.equal(after, before + 10)
    starts = torch.stack(batches)
    assert int(starts.max()) + 10 <= len(data.x)
    assert starts.unique().numel() == starts.numel()
    # Of 7 lanes of 142 characters nearly all is read, from another start each epoch.
    assert starts.numel() * 10 > 0.9 * len(data.x)
    other = next(iter(small().batches(data, 7, torch.Generator().manual_seed(4))))
    assert len({int(batches[0][0]), int(other[0])}) == 2
    assert len(next(iter(small().batches(text(25), 64, torch.Generator().manual_seed(0))))) == 2


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_windows_with_the_state_carried_are_one_long_text(cell):
    data, model = text(), small(cell).train()
    batches = list(model.batches(data, 4, torch.Generator().manual_seed(0)))
    total = sum(model.loss(data.batch(index)).total.detach() for index in batches)
    long = torch.stack([data.x[int(start) : int(start) + 10 * len(batches)] for start in batches[0]])
    model.eval()
    whole = sum(model.stream_log_prob(lane).sum() for lane in long) / 4
    torch.testing.assert_close(-whole, total, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(model.stream_log_prob(long[0], window=7), model.stream_log_prob(long[0]))


def test_gradients_stop_at_the_window_and_an_epoch_begins_anew():
    data, model = text(), small().train()
    index = torch.tensor([0, 100])
    model.loss(data.batch(index))
    assert not model.carried.requires_grad and model.carried.shape == (2, 2, 2, 8)
    carried = model.loss(data.batch(index + 10)).total
    model.before_epoch(data)
    assert model.loss(data.batch(index + 10)).total != carried
    forgets = small(restart=0.999).train()
    forgets.load_state_dict({k: v for k, v in model.state_dict().items()})
    forgets.loss(data.batch(index))
    torch.testing.assert_close(
        forgets.loss(data.batch(index + 10)).total, small().loss(data.batch(index + 10)).total, rtol=1e-5, atol=1e-5
    )


def test_evaluating_leaves_the_lanes_alone():
    data, model = text(), small().train()
    model.loss(data.batch(torch.tensor([0, 100])))
    before = model.carried.clone()
    model.eval()
    model.loss(data.batch(torch.tensor([5, 6, 7])))
    model.log_prob(data[torch.tensor([1, 2])])
    assert torch.equal(model.carried, before)


def test_an_interrupted_run_keeps_its_lanes(tmp_path):
    run = fit("char-rnn", text(), steps=5, out=tmp_path / "run", quiet=True, batch_size=4, pictures=0, features=8)
    again = Run(tmp_path / "run").model
    assert again.carried.shape[2] == 4
    assert torch.equal(again.carried, run.model.carried) and torch.equal(again.last, run.model.last)


def test_texts_longer_than_the_window():
    model = small().eval()
    assert model.sample(3, length=25).shape == (3, 25)
    x, known = torch.randint(6, (2, 30)), torch.arange(30) < 12
    done = model.complete(x, known)
    assert torch.equal(done[:, :12], x[:, :12]) and done.shape == (2, 30)
    picture = CharRNN(Images(1, 3, 4, 5), features=8)
    with pytest.raises(TacitError, match="length is 25, but this model draws the 12 entries"):
        picture.sample(1, length=25)


def test_it_learns_what_lies_beyond_a_window():
    """A text of period twelve, which windows of ten can only know by carrying."""
    torch.manual_seed(1)
    pattern = torch.randint(6, (12,))
    stream = pattern.repeat(100).to(torch.uint8)
    data, model = Dataset(SPACE, stream, vocabulary=tuple("abcdef")), small().train()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    for epoch in range(15):
        model.before_epoch(data)
        for index in model.batches(data, 8, torch.Generator().manual_seed(epoch)):
            optimiser.zero_grad()
            model.loss(data.batch(index)).total.backward()
            optimiser.step()
    model.eval()
    assert -model.stream_log_prob(stream[:600])[100:].mean() < 0.05


def test_pixels_know_their_coordinates():
    """Two pixels with the same past at different places are drawn differently."""
    torch.manual_seed(0)
    model = CharRNN(Images(1, 2, 2, 2), features=8).eval()
    places = model.places
    assert torch.equal(places[:, 1:], torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]]))
    seen = torch.zeros(1, 4, dtype=torch.long)
    before, _ = model._read(seen, None, None)
    model.places = places.flip(0)
    assert (model._read(seen, None, None)[0] != before).any()


def test_clear_errors():
    with pytest.raises(TacitError, match="cell is 'rnn': give 'lstm' or 'gru'"):
        small("rnn")
    with pytest.raises(TacitError, match=r"restart is 1\.0"):
        small(restart=1.0)
    with pytest.raises(TacitError, match="features is 0"):
        CharRNN(SPACE, features=0)
    assert small().loss(Batch(torch.randint(6, (2, 10)), torch.arange(2))).total > 0
