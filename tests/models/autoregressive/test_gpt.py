"""GPT against `transformers`, its orders, and completion from any part of an image."""

import itertools
import json

import pytest
import scipy.stats
import torch

from tacit.data import Dataset
from tacit.errors import DataError, TacitError
from tacit.model import Batch
from tacit.models.autoregressive.gpt import GPT
from tacit.spaces import Images, Tokens

# Of the contract's tests.
SMALL = {"layers": 2, "heads": 2, "features": 16}

TINY = Images(1, 2, 3, 2)


def random_gpt(space, std=0.4, **arguments):
    torch.manual_seed(0)
    model = GPT(space, layers=2, heads=2, features=8, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
    return model.eval()


def everything(space):
    values = itertools.product(range(space.levels), repeat=space.dimensions)
    return torch.tensor(list(values)).view(-1, *space.shape).to(space.torch_dtype)


@pytest.fixture
def checkpoint(tmp_path):
    """A small GPT-2 with random weights, as `transformers` writes it, and the network itself."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=37, n_positions=16, n_embd=24, n_layer=3, n_head=4, bos_token_id=36, eos_token_id=36
    )
    network = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.save_pretrained(tmp_path, safe_serialization=True)
    return tmp_path, network


def test_weights_of_transformers_give_their_logits(checkpoint):
    folder, network = checkpoint
    model = GPT.from_hugging_face(folder)
    assert model.space == Tokens(37, 16)
    x = torch.randint(37, (5, 16))
    read = torch.cat([torch.full((5, 1), 36), x[:, :-1]], 1)
    with torch.no_grad():
        theirs = network(read).logits
        torch.testing.assert_close(model.conditionals(x, None).transpose(1, 2), theirs, rtol=1e-5, atol=1e-5)
        expected = theirs.log_softmax(2).gather(2, x[:, :, None])[:, :, 0].sum(1)
        torch.testing.assert_close(model.log_prob(x), expected, rtol=1e-5, atol=1e-4)
        short = GPT.from_hugging_face(folder, length=7)
        torch.testing.assert_close(short.log_prob(x[:, :7]).shape, torch.Size([5]))
    assert model.sample(2).shape == (2, 16)


def test_folders_that_cannot_be_loaded(checkpoint, tmp_path):
    folder, _ = checkpoint
    with pytest.raises(TacitError, match="length is 40, and the model was trained for 16 tokens"):
        GPT.from_hugging_face(folder, length=40)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"activation_function": "relu"}))
    with pytest.raises(DataError, match="activation_function 'relu': only 'gelu_new'"):
        GPT.from_hugging_face(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"holds no model\.safetensors"):
        GPT.from_hugging_face(folder)


def test_orders():
    assert torch.equal(random_gpt(Images(1, 3, 3, 2), order="zigzag").order, torch.tensor([0, 1, 2, 5, 4, 3, 6, 7, 8]))
    colour = random_gpt(Images(2, 2, 2, 2), order="zigzag").order
    assert torch.equal(colour, torch.tensor([0, 4, 1, 5, 3, 7, 2, 6])), "a pixel's colours stay together"
    assert random_gpt(TINY, order="random").order.sort().values.tolist() == list(range(6))
    with pytest.raises(TacitError, match="tokens have no rows"):
        random_gpt(Tokens(3, 4), order="zigzag")
    with pytest.raises(TacitError, match="order is 'spiral'"):
        random_gpt(TINY, order="spiral")


def test_a_model_of_any_order_is_the_mixture_of_its_orders():
    model = random_gpt(TINY, order="any", orders=3)
    x = everything(TINY)
    with torch.no_grad():
        assert model.log_prob(x).double().exp().sum().item() == pytest.approx(1, abs=1e-5)
        each = torch.stack([model._log_prob_along(x, order[None], None).sum(1) for order in model.orders]).exp()
    assert not torch.allclose(each[0], each[1], rtol=1e-2)
    torch.testing.assert_close(model.log_prob(x).exp(), each.mean(0), rtol=1e-4, atol=0)
    torch.testing.assert_close(each.double().sum(1), torch.ones(3).double(), rtol=1e-5, atol=0)
    base = 2 ** torch.arange(5, -1, -1)
    drawn = torch.bincount((model.sample(20_000).flatten(1).long() * base).sum(1), minlength=64)
    assert scipy.stats.chisquare(drawn.numpy(), 20_000 * each.mean(0).double().numpy()).pvalue > 1e-3


def test_rows_of_their_own_orders_replay():
    """What each row drew in its own order, the full pass in that order finds."""
    model = random_gpt(Images(1, 4, 4, 3), order="any", orders=5)
    order = torch.stack([torch.randperm(16) for _ in range(6)])
    sites = torch.randint(3, (6, 16))
    state, before, steps = model._state(6, None, order), None, []
    with torch.no_grad():
        for t in range(16):
            parameters, state = model.step(state, before)
            steps.append(parameters)
            before = sites[:, t]
        full = model._logits(model._along(sites, order, None))
    torch.testing.assert_close(torch.stack(steps, 1), full, rtol=1e-5, atol=1e-5)


def test_any_part_of_an_image_completes_any_other():
    model = random_gpt(TINY, order="any", classes=2)
    x = torch.randint(2, (500, 1, 2, 3)).to(torch.uint8)
    known = torch.tensor([[[False, True, False], [True, False, True]]])
    done = model.complete(x, known)
    assert torch.equal(done[:, known], x[:, known])
    assert (done != x)[:, ~known].any()
    assert model.complete(x, known, label=1).shape == x.shape
    with pytest.raises(TacitError, match="let the known part come first, or take a model of any order"):
        random_gpt(TINY).complete(x, known)


def test_any_order_learns_and_every_parameter_has_a_gradient():
    torch.manual_seed(0)
    model = GPT(TINY, layers=1, heads=2, features=16, order="any", dropout=0.1).train()
    x = (torch.rand(64, 1, 2, 3) < 0.2).to(torch.uint8)
    model.adapt(Dataset(TINY, x))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = model.loss(Batch(x, torch.arange(64))).total
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < sum(losses[:10])


def test_clear_errors():
    with pytest.raises(TacitError, match="heads is 3, which does not divide features, 8"):
        GPT(TINY, heads=3, features=8)
    with pytest.raises(TacitError, match="layers is 0: give at least 1"):
        GPT(TINY, layers=0)
    with pytest.raises(TacitError, match=r"dropout is 1\.0"):
        GPT(TINY, dropout=1.0)
