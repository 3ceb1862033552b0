"""The feature-invariant contrastive loss: our reading of the FRAMI abstract.

Shape legend: B batch, C channels, T frames, D = 2C pooled statistics, E embedding size, N memory
size. Source: the loss is InfoNCE with a memory bank as in G. Fang et al., *Contrastive Model
Inversion*, IJCAI 2021; that its features are the hidden states before and after the statistics
pooling is our reading of Z. Kang et al., *FRAMI*, ICASSP 2023, whose abstract names both but not
how they are joined.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.augment import random_crop, random_gain, random_masks, random_roll
from frami_edge.distributed import Rows
from frami_edge.models.hidden import Hidden


def contrastive_view(
    x_B1MT: Tensor, generator: torch.Generator, *, shortest: float = 0.5, gain: float = 0.3
) -> Tensor:
    """A second look at the same clips: rolled, cropped, louder or softer, masked.

    Different lengths are the point: statistics pooling should make them agree.

    Returns:
        (B, 1, M, T'), T' between ``shortest`` * T and T, one length for the batch.
    """
    _, _, m, t = x_B1MT.shape
    keep = shortest + (1 - shortest) * float(torch.rand((), generator=generator))
    x = random_crop(random_roll(x_B1MT, generator), max(1, round(keep * t)), generator)
    x = random_gain(x, gain, generator)
    return random_masks(x, m // 8, x.shape[3] // 8, generator)


class FeatureInvariantContrast(nn.Module):
    """Two views of one synthetic clip agree, different clips and a memory bank differ.

    ``L = -mean_i log( exp(q_i·k_i / τ) / Σ_j exp(q_i·k_j / τ) )``, j over the batch and the memory.
    q and k join an embedding of the frame features (projected frame by frame, then averaged) with
    one of the pooled statistics; keys carry no gradient.

    Args:
        channels: C of the teacher's frame features.
        pooled: D of its pooled state.
        embedding: Size of each half of the embedding.
        memory: Keys of earlier clips that serve as negatives.
        temperature: τ.
    """

    memory: Tensor
    filled: Tensor

    def __init__(
        self,
        channels: int,
        pooled: int,
        embedding: int = 64,
        memory: int = 1024,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.before = nn.Sequential(nn.Conv1d(channels, embedding, 1), nn.ReLU())
        self.before_out = nn.Linear(embedding, embedding)
        self.after = nn.Sequential(
            nn.Linear(pooled, embedding), nn.ReLU(), nn.Linear(embedding, embedding)
        )
        self.register_buffer("memory", torch.zeros(memory, 2 * embedding))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        # A copy on the host: reading the buffer on a GPU would wait for it at every step.
        self._filled = 0
        self.register_load_state_dict_post_hook(_recount)  # type: ignore[no-untyped-call]

    def embed(self, hidden: Hidden) -> Tensor:
        """(B, 2E) float32 of unit length."""
        before = self.before_out(self.before(hidden.frames_BCT.float()).mean(dim=2))
        after = self.after(hidden.pooled_BD.float())
        joined = torch.cat([F.normalize(before, dim=1), F.normalize(after, dim=1)], dim=1)
        return F.normalize(joined, dim=1)

    def forward(
        self, query: Hidden, key: Hidden, rows: Rows | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of two views, row by row, and the keys (B, 2E).

        With ``rows``, the views are those of this process, loss and keys those of the whole batch.
        """
        q = self.embed(query)
        k = self.embed(key).detach()
        if rows:
            q, k = rows.gather(q), rows.gather(k)
        stored = self.memory[: min(self._filled, self.memory.shape[0])]
        similarity = q @ torch.cat([k, stored]).T / self.temperature
        return F.cross_entropy(similarity, torch.arange(q.shape[0], device=q.device)), k

    @torch.no_grad()
    def remember(self, keys: Tensor) -> None:
        """Store keys of clips that entered the bank, over the oldest ones."""
        size = self.memory.shape[0]
        keys = keys[-size:]
        index = (self._filled + torch.arange(keys.shape[0], device=keys.device)) % size
        self.memory[index] = keys
        self.filled += keys.shape[0]
        self._filled += keys.shape[0]


def _recount(module: nn.Module, _: object) -> None:
    assert isinstance(module, FeatureInvariantContrast)
    module._filled = int(module.filled)
