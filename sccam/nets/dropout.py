"""Channel dropout that draws for the whole batch of a step, of which one process may see a part.

The part then loses the channels that it loses where one process sees everything, so a step does not depend on how
many processes share it, nor on how many parts each of them takes one after the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelDropout(nn.Dropout2d):
    """As `nn.Dropout2d`; with `part` = (position of the first image, images of the whole batch), of that part."""

    part: tuple[int, int] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """[N D h w] -> the same, some channels 0 and the others divided by 1 - p."""
        if self.part is None or not self.training or self.p == 0:
            return F.dropout2d(input, self.p, self.training)
        first, whole = self.part
        kept = torch.empty(whole, input.shape[1], 1, 1, dtype=input.dtype, device=input.device).bernoulli_(1 - self.p)
        return input * kept[first : first + len(input)].div_(1 - self.p)


def share_dropout(model: nn.Module, part: tuple[int, int] | None) -> None:
    """Tells every dropout of a model which part of the batch comes next."""
    for module in model.modules():
        if isinstance(module, ChannelDropout):
            module.part = part
