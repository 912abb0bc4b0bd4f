"""GPT: a causal transformer over the characters of a text or the pixels of an image, in any order.

p(x) = ∏_t p(x_{o(t)} | x_{o(1)}, …, x_{o(t−1)}) for an order o of the entries. The network is GPT-2's: an embedding of
the entry drawn last plus one of the place to be drawn next, layers of

    h ← h + Attention(LayerNorm(h)),   h ← h + MLP(LayerNorm(h)),

in which a site attends to itself and those before it, and a softmax over the levels. What stands before the first
entry is a vector of its own, or the embedding of the class.

An image may be read in rows ("raster"), in rows to and fro ("zigzag"), in one order drawn by chance ("random"), or in
all ("any"): then the order is data, a new one for each row of a batch, every site is told its own place as well as the
next, and any part of an image can be completed from any other. Such a model is the mixture of `orders` of its orders
with equal weights, p(x) = 1/S Σ_s p_{o_s}(x), whose likelihood is exact.

References
----------
- Radford et al. (2019), Language models are unsupervised multitask learners (GPT-2)
- Chen et al. (2020), Generative pretraining from pixels (ImageGPT)
- Pannatier, Courdier & Fleuret (2024), σ-GPTs: a new approach to autoregressive models, arXiv:2404.09562 (any order)
- Uria, Murray & Larochelle (2014), A deep and tractable density estimator, arXiv:1310.1757 (the mixture of orders)
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.distributions import Categorical
from tacit.errors import DataError, TacitError, check_at_least
from tacit.model import Recipe
from tacit.models.autoregressive._autoregressive import Sequential, entry_head, raster
from tacit.nn import noise
from tacit.spaces import Images, Space, Tokens


class GPT(Sequential):
    """GPT-2's transformer.

    Args:
        layers: transformer blocks.
        heads: of attention, which divide `features`.
        features: width of the residual stream.
        dropout: of the embeddings and of what each half of a block adds, while learning.
        order: in which entries are read and drawn: "raster", "zigzag", "random", or "any".
        orders: how many orders an "any" model averages over.
        classes: how many classes it draws and tells apart; None learns without labels.
        label_dropout: share of the rows that are learnt without their label, which guidance needs.

    Raises:
        TacitError: a number is below 1, `heads` does not divide `features`, or `order` is none of the four.
    """

    spaces = (Tokens, Images)
    recipe = Recipe(
        batch_size=32, learning_rate=1e-3, betas=(0.9, 0.99), weight_decay=0.1, schedule="cosine", warmup=100, clip=1.0
    )
    appetite = 5.0

    orders: Tensor

    def __init__(
        self,
        space: Space,
        *,
        layers: int = 4,
        heads: int = 4,
        features: int = 128,
        dropout: float = 0.0,
        order: Literal["raster", "zigzag", "random", "any"] = "raster",
        orders: int = 8,
        classes: int | None = None,
        label_dropout: float = 0.0,
    ):
        super().__init__(space, classes, label_dropout)
        check_at_least(1, layers=layers, heads=heads, features=features, orders=orders)
        if features % heads:
            raise TacitError(f"heads is {heads}, which does not divide features, {features}: give a divisor")
        if not 0 <= dropout < 1:
            raise TacitError(f"dropout is {dropout}: give a probability in [0, 1)")
        self.head = entry_head(space)
        self.any_order = order == "any"
        self.register_buffer("orders", _orders(space, order, orders))
        levels, length = space.levels or 0, space.dimensions
        self.dropout = dropout
        self.value = nn.Embedding(levels, features)
        self.next_place = nn.Embedding(length, features)
        self.own_place = nn.Embedding(length, features) if self.any_order else None
        self.begin = nn.Embedding(1 if classes is None else classes + 1, features)
        self.blocks = nn.ModuleList(Block(features, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(features)
        # As in GPT-2 the read-out is the embedding of the values, where there are as many parameters as values.
        self.output = None if isinstance(self.head, Categorical) else nn.Linear(features, self.head.parameters)
        self.apply(_initialise)
        for name, parameter in self.named_parameters():
            if name.endswith(("project.weight", "contract.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers))

    # -- the network, along the sites of an order ---------------------------------------------------------------------

    @property
    def order(self) -> Tensor:  # type: ignore[override]
        """The order, (sites,); of an "any" model the first it averages over."""
        return self.orders[0]

    def _begin(self, label: Tensor | None, count: int) -> Tensor:
        """What stands before the first entry, (batch, features)."""
        return self.begin.weight.expand(count, -1) if label is None else self.begin(label)

    def _along(self, sites: Tensor, order: Tensor, label: Tensor | None) -> Tensor:
        """Features of every site, (batch, sites, features), of entries in the order of `order`, (batch or 1, sites)."""
        seen = self.value(sites[:, :-1].long())
        if self.own_place is not None:
            seen = seen + self.own_place(order[:, :-1])
        h = torch.cat([self._begin(label, len(sites))[:, None], seen], 1) + self.next_place(order)
        h = drop(h, self.dropout, self.training)
        for block in self.blocks:
            h = block(h)
        return self.norm(h)

    def _logits(self, h: Tensor) -> Tensor:
        """(…, features) -> the head's parameters, (…, parameters)."""
        return F.linear(h, self.value.weight) if self.output is None else self.output(h)

    def _log_prob_along(self, entries: Tensor, order: Tensor, label: Tensor | None) -> Tensor:
        """Log-probability of each site, (batch, sites)."""
        sites = entries.flatten(1).gather(1, order.expand(len(entries), -1))
        parameters = self._logits(self._along(sites, order, label)).float()
        return self.head.log_prob(parameters.flatten(0, 1), sites.flatten()).view_as(sites)

    def hidden(self, entries: Tensor, label: Tensor | None) -> Tensor:
        """Features of the last layer at every entry, (batch, features, *shape), in the model's (first) order."""
        h = self._along(entries.flatten(1)[:, self.order], self.order[None], label)
        return h[:, self.order.argsort()].transpose(1, 2).unflatten(2, self.space.shape)

    def readout(self, hidden: Tensor) -> Tensor:
        """(batch, parameters, *shape)."""
        return self._logits(hidden.movedim(1, -1)).movedim(-1, 1)

    def _log_prob(self, entries: Tensor, label: Tensor | None) -> Tensor:
        if self.training and self.any_order:
            order = noise.rand(*entries.flatten(1).shape, device=entries.device).argsort(1)
            return self._log_prob_along(entries, order, label).sum(1)
        each = [self._log_prob_along(entries, order[None], label).sum(1) for order in self.orders]
        return torch.stack(each).logsumexp(0) - math.log(len(each))

    # -- one site after another ---------------------------------------------------------------------------------------

    def init_state(self, count: int, label: Tensor | None) -> State:
        """Empty caches."""
        return self._state(count, label, self.order)

    def _state(self, count: int, label: Tensor | None, order: Tensor) -> State:
        rows = order.expand(count, -1) if order.dim() == 1 else order.repeat(count // len(order), 1)
        caches = [block.cache(count, rows.shape[1]) for block in cast("list[Block]", self.blocks)]
        return State(self._begin(label, count), rows, caches)

    def step(self, state: State, x: Tensor | None) -> tuple[Tensor, State]:
        """The next site's parameters, (batch, parameters)."""
        t = state.site
        h = state.begin if x is None else self.value(x.long())
        if x is not None and self.own_place is not None:
            h = h + self.own_place(state.order[:, t - 1])
        h = h + self.next_place(state.order[:, t])
        for block, (keys, values) in zip(cast("list[Block]", self.blocks), state.caches, strict=True):
            h = block.step(h, keys, values, t)
        state.site += 1
        return self._logits(self.norm(h)), state

    # -- any order: each row of a draw has its own ---------------------------------------------------------------------

    def _drawn_order(self, count: int) -> Tensor:
        if not self.any_order:
            return self.order
        return self.orders[torch.randint(len(self.orders), (count,), device=self.device)]

    def _given(self, x: Tensor, known: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Of an "any" model the known come first, and in a new order for each row; see the base for the others."""
        if not self.any_order:
            return super()._given(x, known, order)
        chance = torch.rand(len(x), self.space.dimensions, device=self.device) - known.flatten().to(self.device).float()
        order = chance.argsort(1)
        return x.flatten(1).gather(1, order[:, : int(known.sum())]), order

    def _labels_given(self, x: Tensor, known: Tensor) -> Tensor | None:
        if not self.any_order or self.classes is None:
            return super()._labels_given(x, known)
        order = (~known.flatten().to(self.device)).int().argsort(stable=True)[None]
        each = [self._log_prob_along(x, order, self._labels(y, len(x))) for y in range(self.classes)]
        joint = torch.stack([log_prob[:, : int(known.sum())].sum(1) for log_prob in each], 1) + self.log_prior
        return torch.multinomial(joint.softmax(1), 1)[:, 0]

    def _placed(self, sites: Tensor, order: Tensor) -> Tensor:
        if order.dim() == 1:
            return super()._placed(sites, order)
        entries = torch.empty_like(sites).scatter_(1, order, sites)
        return self.observations(entries.view(len(sites), *self.space.shape))

    # -- learning -----------------------------------------------------------------------------------------------------

    def adapt(self, data: Dataset) -> None:
        """Start a read-out of its own at the marginals of the entries together."""
        super().adapt(data)
        if self.output is not None:
            with torch.no_grad():
                self.output.bias.copy_(self.head.marginal(data.observations(2000).flatten()[:, None])[:, 0])

    @classmethod
    def from_hugging_face(cls, folder: str | Path, length: int | None = None) -> GPT:
        """GPT-2 with the weights of a local folder, `config.json` and `model.safetensors`, as `transformers` writes it.

        Args:
            folder: where it lies; nothing is downloaded, and nothing unpickled.
            length: of the windows of the model's space; by default as many tokens as it was trained for.

        Returns:
            The model of `Tokens(vocabulary, length)`, in eval mode. What stands before the first token is the embedding
            of the one that ends a text.

        Raises:
            DataError: the folder lacks one of the files, or holds another architecture.
            TacitError: `length` is more than the model was trained for.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        for needed in ("config.json", "model.safetensors"):
            if not (folder / needed).exists():
                raise DataError(
                    f"{folder} holds no {needed}: save the model with save_pretrained(safe_serialization=True)"
                )
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        usual = {"model_type": "gpt2", "activation_function": "gelu_new", "scale_attn_weights": True}
        for key, value in usual.items():
            if config.get(key, value) != value:
                raise DataError(f"{folder} holds a model with {key} {config[key]!r}: only {value!r} can be loaded")
        trained = config["n_positions"]
        if length is not None and not 1 <= length <= trained:
            raise TacitError(f"length is {length}, and the model was trained for {trained} tokens: give at most that")
        space = Tokens(config["vocab_size"], length or trained)
        model = cls(space, layers=config["n_layer"], heads=config["n_head"], features=config["n_embd"])
        weights = {name.removeprefix("transformer."): w for name, w in load_file(folder / "model.safetensors").items()}
        theirs = {
            "value.weight": weights["wte.weight"],
            "next_place.weight": weights["wpe.weight"][: space.length],
            "begin.weight": weights["wte.weight"][config["eos_token_id"]][None],
            "norm.weight": weights["ln_f.weight"],
            "norm.bias": weights["ln_f.bias"],
            "orders": model.orders,
        }
        parts = {
            "attend_norm": "ln_1",
            "attend": "attn.c_attn",
            "project": "attn.c_proj",
            "think_norm": "ln_2",
            "expand": "mlp.c_fc",
            "contract": "mlp.c_proj",
        }
        for i in range(config["n_layer"]):
            for ours, name in parts.items():
                weight = weights[f"h.{i}.{name}.weight"]
                # Their linear layers keep the matrix as (inputs, outputs).
                theirs[f"blocks.{i}.{ours}.weight"] = weight.T if weight.dim() == 2 else weight
                theirs[f"blocks.{i}.{ours}.bias"] = weights[f"h.{i}.{name}.bias"]
        model.load_state_dict(theirs)
        return model.eval()


class Block(nn.Module):
    """Causal self-attention and a two-layer perceptron, each after a layer norm and added to the stream."""

    def __init__(self, features: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attend_norm, self.think_norm = nn.LayerNorm(features), nn.LayerNorm(features)
        self.attend = nn.Linear(features, 3 * features)
        self.project = nn.Linear(features, features)
        self.expand = nn.Linear(features, 4 * features)
        self.contract = nn.Linear(4 * features, features)

    def forward(self, h: Tensor) -> Tensor:
        """(batch, sites, features) -> the same."""
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.attend(self.attend_norm(h)).chunk(3, 2)
        )
        # The attention's own weights are not dropped: the fused kernel would draw noise that processes do not share.
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        h = h + drop(self.project(seen), self.dropout, self.training)
        return h + drop(self._think(h), self.dropout, self.training)

    def _think(self, h: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(self.think_norm(h)), approximate="tanh"))

    def cache(self, count: int, sites: int) -> tuple[Tensor, Tensor]:
        """Room for keys, (batch · heads, features, sites), and values, (batch · heads, sites, features)."""
        size = self.project.in_features // self.heads
        like = self.project.weight
        return like.new_zeros(count * self.heads, size, sites), like.new_zeros(count * self.heads, sites, size)

    def step(self, h: Tensor, keys: Tensor, values: Tensor, t: int) -> Tensor:
        """Site `t`, (batch, features), which joins the caches."""
        q, k, v = self.attend(self.attend_norm(h)).view(len(h), 3, self.heads, -1).unbind(1)
        keys[:, :, t] = k.flatten(0, 1)
        values[:, t] = v.flatten(0, 1)
        weights = torch.bmm(q.reshape(len(keys), 1, -1) * keys.shape[1] ** -0.5, keys[:, :, : t + 1]).softmax(2)
        h = h + self.project(torch.bmm(weights, values[:, : t + 1]).view(len(h), -1))
        return h + self._think(h)


@dataclass
class State:
    """What stands before the first entry, every row's order, each block's keys and values, and the sites drawn."""

    begin: Tensor
    order: Tensor
    caches: list[tuple[Tensor, Tensor]]
    site: int = 0


def drop(x: Tensor, probability: float, training: bool) -> Tensor:
    """Dropout whose noise is a row's own."""
    if not training or probability == 0:
        return x
    return x * (noise.rand(*x.shape, device=x.device) >= probability) / (1 - probability)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def _orders(space: Space, order: str, count: int) -> Tensor:
    """(count, entries), one order a line; only "any" has several."""
    rows = raster(space)
    if order == "raster":
        return rows[None]
    if order == "zigzag":
        if not isinstance(space, Images):
            raise TacitError(f"order is 'zigzag', and {space.kind} have no rows: give 'raster'")
        lines = rows.view(space.height, space.width, space.channels)
        return torch.cat([line.flip(0) if i % 2 else line for i, line in enumerate(lines)]).flatten()[None]
    if order in ("random", "any"):
        return torch.stack([torch.randperm(len(rows)) for _ in range(count if order == "any" else 1)])
    raise TacitError(f"order is {order!r}: give 'raster', 'zigzag', 'random' or 'any'")
