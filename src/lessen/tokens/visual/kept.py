"""The tokens that are left at some depth of one call, and what the host's tables and masks become for them.

prompts of other lengths keep other numbers: the shorter ones are filled on the left with columns that nobody sees
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """Columns of the prompt [B,N] that are left."""

    columns: Tensor
    """int64 [B,M], ascending among real ones."""
    real: Tensor
    """Boolean [B,M]; False is filling."""
    full: int
    """N, tokens of the prompt as the host counts them."""

    @property
    def filled(self) -> bool:
        """Whether some columns are filling."""
        return not bool(self.real.all())

    def gather(self, x: Tensor) -> Tensor:
        """Return the kept tokens of x [B,N,C]."""
        return x.gather(1, self.columns[..., None].expand(-1, -1, x.shape[-1]))

    def tables(self, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the rotations of the kept tokens, [B,M,d] each; gaps stay."""
        cosine, sine = (self.gather(t.expand(len(self.columns), -1, -1)) for t in tables)
        return cosine, sine

    def positions(self, positions: Tensor | None) -> Tensor | None:
        """Return the positions of the kept tokens, [..., B or 1, N] to [..., B, M]."""
        if positions is None:
            return None
        wide = positions.expand(*positions.shape[:-2], len(self.columns), -1)
        return wide.gather(-1, self.columns.expand(*wide.shape[:-1], -1))

    def prefill_mask(self, mask: Tensor | None) -> Tensor | None:
        """Return the mask of the prompt's kept tokens among themselves, [B,1,M,M], from the host's [B or 1,1,N,N].

        None stays None (causal) as long as nothing is filling.
        """
        batch, left = self.columns.shape
        if mask is None:
            if not self.filled:
                return None
            causal = torch.ones(left, left, dtype=torch.bool, device=self.columns.device).tril()
            return self._hide(causal.expand(batch, 1, -1, -1))
        mask = mask.expand(batch, mask.shape[1], -1, -1)
        rows = self.columns[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1])
        cut = mask.gather(2, rows)
        return self._hide(cut.gather(3, self.columns[:, None, None].expand(-1, mask.shape[1], left, -1)))

    def later_mask(self, mask: Tensor | None, queries: int, total: int) -> Tensor | None:
        """Return the mask of tokens after the prompt, [B,1,q,M+new], from the host's [B or 1,1,q,total].

        Args:
            queries: q, tokens of this call.
            total: keys that the host counts, the prompt and all later tokens.
        """
        batch, left = self.columns.shape
        if mask is None:
            if not self.filled:
                return None
            new = total - self.full
            seen = torch.ones(queries, left + new, dtype=torch.bool, device=self.columns.device)
            return self._hide(seen.tril(left + new - queries).expand(batch, 1, -1, -1), own=False)
        late = torch.arange(self.full, mask.shape[-1], device=mask.device).expand(batch, -1)
        columns = torch.cat([self.columns, late], 1)[:, None, None]
        mask = mask.expand(batch, mask.shape[1], -1, -1)
        return self._hide(mask.gather(3, columns.expand(-1, mask.shape[1], mask.shape[2], -1)), own=False)

    def _hide(self, mask: Tensor, own: bool = True) -> Tensor:
        """Hide filling from everybody; filling itself sees itself, so that no row is without a key."""
        if not self.filled:
            return mask
        hidden = torch.zeros(mask.shape[0], mask.shape[-1], dtype=torch.bool, device=mask.device)
        hidden[:, : self.real.shape[1]] = ~self.real
        shut = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        mask = mask.masked_fill(hidden[:, None, None], shut)
        if own:
            itself = torch.diag_embed(hidden)[:, None]
            mask = mask.masked_fill(itself, True if mask.dtype == torch.bool else 0.0)
        return mask


def narrowed(before: Kept, keep: list[Tensor]) -> Kept:
    """Return what is left of `before` when each prompt keeps the places `keep` (ascending, int64 each).

    The result is as wide as the prompt that keeps most. Filling are places that a prompt does not keep, padding first,
    so that no column is held twice.
    """
    width = max(len(places) for places in keep)
    columns, real = [], []
    for row, places in enumerate(keep):
        out = torch.ones(before.columns.shape[1], dtype=torch.bool, device=before.columns.device)
        out[places] = False
        filling = out.nonzero()[:, 0][: width - len(places)]
        columns.append(torch.cat([before.columns[row, filling], before.columns[row, places]]))
        real.append(torch.arange(width, device=out.device) >= width - len(places))
    return Kept(torch.stack(columns), torch.stack(real), before.full)
