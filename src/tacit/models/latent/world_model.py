"""World model: an autoencoder of frames, and a recurrent mixture density of what comes next.

V, a variational autoencoder, makes a short code z_t of every frame x_t. M, a recurrent network with a mixture density
output (MDN-RNN), says how the next code depends on the codes and actions so far,

    p(z_t | z_<t, a_<t) = ∏_j Σ_k π_jk N(z_tj | μ_jk, σ_jk²),    h_t = LSTM(h_{t−1}, z_{t−1}, a_{t−1}),

with π, μ and σ functions of h_t, and what an action brings: the reward, and whether the episode ends. A frame shows no
velocity; h_t can hold it. Draws from M, decoded by V, are dreams: of clips (`sample`, `complete`), or of an environment
that takes actions (`tacit.worlds.dream`), where a temperature makes the dream more or less certain.

V learns by its own bound, M by the likelihood of codes that V draws, through which no gradient returns. Together they
are a density of clips: with M as the prior of all codes,

    log p(x | a) ≥ E_q[Σ_t log p(x_t|z_t) + log p(z_t | z_<t, a_<t) − log q(z_t|x_t)].

Beside h the mixture sees z_{t−1} itself, since little changes from a frame to the next. Rewards and ends are given
z_{t+1} beside h_{t+1}: what ends an episode is mostly to be seen, and so a dream ends where it shows an end.

References
----------
- Ha & Schmidhuber (2018), World models, arXiv:1803.10122
- Kingma & Welling (2014), Auto-encoding variational Bayes, arXiv:1312.6114 (V)
- Bishop (1994), Mixture density networks, Aston University NCRG/94/004; Graves (2013), arXiv:1308.0850 (M)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit.data import Dataset
from tacit.distributions import GaussianMixture
from tacit.errors import DataError, SpaceError, TacitError, check_at_least
from tacit.model import Batch, Losses, Model, Recipe
from tacit.models.latent.vae import VAE
from tacit.nn import noise
from tacit.spaces import Images, Video

# Columns of a target after the actions: the reward of the action, whether it ended the episode, and whether the frame
# is an episode's first.
EVENTS = 3
# Actions that are remembered to draw from where none are given.
_HABITS = 512


@dataclass(frozen=True)
class Memory:
    """What M remembers: h and the cell's state, (batch, memory) each, and the last code, (batch, latent)."""

    h: Tensor
    cell: Tensor
    z: Tensor


class WorldModel(Model):
    """World model of clips, with the actions taken in them or without.

    Args:
        latent: dimensions of z.
        channels: of V's convolutions, each of which halves height and width.
        hidden: units of V's fully connected hidden layers.
        memory: units of M's LSTM.
        components: Gaussians of the mixture of each dimension of z.
        actions: numbers an action has; with 0 it takes clips alone. Else the data's `target` is (rows, frames,
            actions + 3): the action taken on seeing the frame, the reward it brought, whether it ended the episode, and
            whether the frame is an episode's first, which no frame before it explains.
        seen: frames of every clip, drawn anew at every step, from which V learns; M takes all.

    Raises:
        TacitError: a number is below 1, or `actions` below 0.
        SpaceError: there are actions, and clips of a single frame.
    """

    spaces = (Video,)
    recipe = Recipe(batch_size=16, learning_rate=2e-3, schedule="cosine", ema=0.99)
    density = "bound"
    appetite = 3.0

    habits: Tensor
    reward_moments: Tensor

    def __init__(
        self,
        space: Video,
        *,
        latent: int = 12,
        channels: tuple[int, ...] = (8, 16, 32),
        hidden: tuple[int, ...] = (128,),
        memory: int = 64,
        components: int = 5,
        actions: int = 0,
        seen: int = 6,
    ):
        super().__init__(space)
        check_at_least(1, latent=latent, memory=memory, components=components, seen=seen)
        check_at_least(0, actions=actions)
        if actions and space.frames < 2:
            raise SpaceError("clips of 1 frame do not show what an action does: give clips of 2 or more")
        self.latent, self.actions, self.seen = latent, actions, seen
        frame = Images(space.channels, space.height, space.width, space.levels)
        self.vision = VAE(frame, latent=latent, hidden=hidden, network="conv", channels=channels)
        self.mixture = GaussianMixture(components)
        self.cell = nn.LSTMCell(latent + actions, memory)
        # What M begins with, h and the cell's state: in the middle of things, and at the start of an episode.
        self.begin = nn.Parameter(torch.zeros(2 if actions else 1, 2, memory))
        self.next = nn.Linear(memory + latent, self.mixture.parameters * latent)
        if actions:
            self.events = nn.Sequential(nn.Linear(memory + latent, memory), nn.SiLU(), nn.Linear(memory, 2))
            self.register_buffer("habits", torch.zeros(_HABITS, actions))
            self.register_buffer("reward_moments", torch.tensor([0.0, 1.0]))

    # -- M, step by step ----------------------------------------------------------------------------------------------

    def start(self, count: int, *, episode: bool = False) -> Memory:
        """The memory before the first frame, of an episode or of a clip that begins anywhere."""
        h, cell = self.begin[int(episode)].expand(count, 2, -1).unbind(1)
        return Memory(h, cell, h.new_zeros(count, self.latent))

    def foresee(self, memory: Memory) -> Tensor:
        """The mixture of the next code, (batch, parameters, latent), as `GaussianMixture` takes it."""
        seen = torch.cat([memory.h, memory.z], 1)
        return self.next(seen).float().unflatten(1, (self.mixture.parameters, self.latent))

    def remember(self, memory: Memory, z: Tensor, action: Tensor) -> Memory:
        """The memory after a code, (batch, latent), and the action taken on seeing it, (batch, actions)."""
        h, cell = self.cell(torch.cat([z, action], 1), (memory.h, memory.cell))
        return Memory(h, cell, z)

    def consequences(self, memory: Memory, z: Tensor) -> tuple[Tensor, Tensor]:
        """The expected reward of the last action, and the logit of its having ended the episode: (batch,) each.

        `z` is the code of what is seen after it, (batch, latent).
        """
        reward, done = self.events(torch.cat([memory.h, z], 1)).float().unbind(1)
        mean, deviation = self.reward_moments
        return mean + deviation * reward, done

    def _follow(self, z: Tensor, actions: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Memory]:
        """M on given codes, (batch, frames, latent): mixtures before each frame, h after each, and the last memory.

        Where a frame is an episode's first, the memory begins anew: (batch, frames, parameters, latent), (batch,
        frames, memory).
        """
        memory = self.start(len(z))
        fresh = self.start(len(z), episode=True) if self.actions else memory
        mixtures, after = [], []
        for z_t, action, anew in zip(z.unbind(1), actions.unbind(1), first.unbind(1), strict=True):
            if self.actions:
                new = anew[:, None]
                memory = Memory(
                    torch.where(new, fresh.h, memory.h),
                    torch.where(new, fresh.cell, memory.cell),
                    torch.where(new, fresh.z, memory.z),
                )
            mixtures.append(torch.cat([memory.h, memory.z], 1))
            memory = self.remember(memory, z_t, action)
            after.append(memory.h)
        foreseen = self.next(torch.stack(mixtures, 1)).float()
        return foreseen.unflatten(2, (self.mixture.parameters, self.latent)), torch.stack(after, 1), memory

    # -- learning -----------------------------------------------------------------------------------------------------

    def adapt(self, data: Dataset) -> None:
        """Start V at its pixels' marginals; keep some of the actions, and the moments of the reward.

        Raises:
            DataError: the model has actions, and the data has none of that size.
        """
        clips = data.observations(500)
        self.vision.adapt(Dataset(self.vision.space, clips.flatten(0, 1), name=data.name))
        if self.actions:
            wanted = (self.space.shape[0], self.actions + EVENTS)
            if data.target is None or data.target.shape[1:] != wanted:
                has = "none" if data.target is None else f"one of {tuple(data.target.shape[1:])}"
                raise DataError(f"a target of {wanted} is needed for {self.actions} actions and {data.name} has {has}")
            actions, reward, *_ = self._parts(data.target.flatten(0, 1))
            even = torch.arange(_HABITS) * len(actions) // _HABITS
            with torch.no_grad():
                self.habits.copy_(actions[even])
                self.reward_moments.copy_(torch.stack([reward.mean(), reward.std(unbiased=False).clamp(min=1e-3)]))

    def _parts(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A target's actions, rewards, ends and first frames: (…, actions), (…,) three times."""
        actions, *events = target.split([self.actions, 1, 1, 1], -1)
        return actions, *(event[..., 0] for event in events)  # type: ignore[return-value]

    def _control(self, target: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
        """Actions, (count, frames, actions), and first frames, bool; without a target, actions as the data's were."""
        frames = self.space.shape[0]
        if target is not None and self.actions:
            actions, _, _, first = self._parts(target)
            return actions, first > 0.5
        nothing = torch.zeros(count, frames, dtype=torch.bool, device=self.device)
        if not self.actions:
            return nothing[..., None][..., :0].float(), nothing
        return self.habits[(noise.rand(count, frames, device=self.device) * _HABITS).long()], nothing

    def loss(self, batch: Batch) -> Losses:
        """V's `reconstruction` and `kl`, and M's `code`, −log p(z_t | …), all nats a frame; `reward` and `done`.

        The reward's is half a squared error, in standard deviations; whether the episode ends, a cross-entropy.
        """
        x, (count, frames) = self.space.check(batch.x), batch.x.shape[:2]
        actions, first = self._control(batch.target, count)
        some = noise.rand(count, frames, device=x.device).argsort(1)[:, : self.seen]
        shown = x[torch.arange(count, device=x.device)[:, None], some].flatten(0, 1)
        posterior = self.vision._posterior(shown)
        eps = noise.randn(count, some.shape[1], self.latent, device=x.device).flatten(0, 1)
        reconstruction = -self._log_likelihood(posterior.draw(eps)[0], shown).mean()
        with torch.no_grad():
            z, _ = self._codes(x)
        mixtures, after, _ = self._follow(z, actions, first)
        terms = {
            "reconstruction": reconstruction,
            "kl": posterior.kls().sum(1).mean(),
            "code": -self._code_log_prob(mixtures, z).mean(),
        }
        if self.actions and batch.target is not None:
            reward, done = self.events(torch.cat([after[:, :-1], z[:, 1:]], 2)).float().unbind(2)
            _, wanted, ended, _ = self._parts(batch.target[:, :-1])
            # Nobody acts on the last frame of an episode; what follows the last of the clip is not known.
            counts = 1 - first[:, 1:].float()
            mean, deviation = self.reward_moments
            error = (reward - (wanted - mean) / deviation).square()
            surprise = F.binary_cross_entropy_with_logits(done, ended, reduction="none")
            terms |= {"reward": 0.5 * (counts * error).mean(), "done": (counts * surprise).mean()}
        return Losses(**terms)

    def _codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draws from q(z|x), (batch, frames, latent), and log p(z) − log q(z|x) with p = N(0, I), (batch, frames)."""
        posterior = self.vision._posterior(x.flatten(0, 1))
        eps = noise.randn(*x.shape[:2], self.latent, device=x.device)
        z, log_ratio = posterior.draw(eps.flatten(0, 1))
        return z.unflatten(0, x.shape[:2]), log_ratio.unflatten(0, x.shape[:2])

    def _log_likelihood(self, z: Tensor, frames: Tensor) -> Tensor:
        """Log p(x|z) of frames, (batch,)."""
        return self.vision.likelihood.log_prob(self.vision.decoder(z), frames)

    def _code_log_prob(self, mixtures: Tensor, z: Tensor) -> Tensor:
        """Log p(z_t | z_<t, a_<t), (batch, frames)."""
        return self.mixture.log_prob(mixtures.flatten(0, 1), z.flatten(0, 1)).sum(1).unflatten(0, z.shape[:2])

    # -- capabilities -------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        """A lower bound on log p(x | a) in expectation, (batch,) nats, by one draw of the codes.

        Without a target, where the model has actions, they are drawn as the data's were: a bound on log E_a p(x | a).
        """
        x = self.space.check_values(x)
        z, log_ratio = self._codes(x)
        mixtures, _, _ = self._follow(z, *self._control(target, len(x)))
        log_normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum(2)
        pixels = self._log_likelihood(z.flatten(0, 1), x.flatten(0, 1)).unflatten(0, z.shape[:2])
        return (pixels + self._code_log_prob(mixtures, z) + log_ratio - log_normal).sum(1)

    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0) -> Tensor:
        """Dreams, (count, frames, channels, height, width); `temperature` multiplies M's σ and divides its log π."""
        actions, _ = self._control(None, count)
        return self._observed(self._dream(self.start(count), actions, temperature))

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, temperature: float = 1.0, target: Tensor | None = None) -> Tensor:
        """`x` with the frames after the known ones dreamt.

        Raises:
            TacitError: `known` is no bool mask of a clip, or says anything but that whole frames, the first, are known.
        """
        x = self.space.check_values(x)
        frames = int(self.space.check_known(known).flatten(1).all(1).sum())
        if bool(known[frames:].any()):
            raise TacitError("known must be whole frames, from the first on: a dream goes forward")
        if frames == len(known):
            return x.clone()
        z = self.dream(x[:, :frames], target, temperature=temperature)
        return torch.cat([x[:, :frames], self._observed(z[:, frames:])], 1)

    @torch.no_grad()
    def dream(self, begun: Tensor, target: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """Codes of clips, (batch, frames, latent), of which the first frames, (batch, begun, …), are given.

        Those of the given frames are drawn from q, those after them from M, while the target's actions are taken.
        """
        actions, first = self._control(target, len(begun))
        count = begun.shape[1]
        if not count:
            return self._dream(self.start(len(begun)), actions, temperature)
        z, _ = self._codes(begun)
        memory = self._follow(z, actions[:, :count], first[:, :count])[2]
        return torch.cat([z, self._dream(memory, actions[:, count:], temperature)], 1)

    def _dream(self, memory: Memory, actions: Tensor, temperature: float) -> Tensor:
        """Codes drawn one after the other, (batch, frames, latent), while these actions are taken."""
        codes = []
        for action in actions.unbind(1):
            codes.append(self.mixture.sample(self.foresee(memory), temperature))
            memory = self.remember(memory, codes[-1], action)
        return torch.stack(codes, 1)

    def _observed(self, z: Tensor) -> Tensor:
        """Frames drawn from p(x|z), for codes (batch, frames, latent)."""
        frames = self.vision.likelihood.sample(self.vision.decoder(z.flatten(0, 1)))
        return frames.unflatten(0, z.shape[:2])

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """V's posterior means, (batch, frames, latent)."""
        return self.vision.encode(self.space.check_values(x).flatten(0, 1)).unflatten(0, x.shape[:2])

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The most likely clip of codes, (batch, frames, channels, height, width)."""
        return self.vision.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])

    @torch.no_grad()
    def embed(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        """What a controller would see after the clip, (batch, latent + memory): the last code, and h."""
        z = self.encode(x)
        memory = self._follow(z, *self._control(target, len(x)))[2]
        return torch.cat([memory.z, memory.h], 1)
