"""The eager path: what people run today, step for step as the authors' code does it. The baseline of every suite.

Kept whole and fair: torch and pydensecrf as they come, all cores, no step left out that the method needs and none
added. Source: SC-CAM infer_cls.py (maps), PSA infer_aff.py (walk), PSA tool/imutils.py (CRF).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sccam.stages.cam import MAX_EPSILON
from sccam.stages.walk import WalkConfig, pair_windows, transition, walk_lengths
from sccam.structures import AffinityField, FloatArray


def dense_transition(affinity: AffinityField, config: WalkConfig, device: str = "cpu") -> Tensor:
    """T = A^beta / column sums as a dense f32 [hw hw]."""
    _, height, width = affinity.values.shape
    cells = torch.arange(height * width, device=device).reshape(height, width)
    A = torch.eye(height * width, device=device)
    for (dy, dx), values in zip(affinity.offsets.tolist(), affinity.values, strict=True):
        here, there = pair_windows(height, width, (dy, dx), affinity.offsets, config.border)
        i, j = cells[here].flatten(), cells[there].flatten()
        A[i, j] = A[j, i] = torch.from_numpy(values[here].ravel()).to(device)
    P = A**config.beta
    return P / P.sum(dim=0, keepdim=True)


def dense_walk(scores: FloatArray, affinity: AffinityField, config: WalkConfig, device: str = "cpu") -> FloatArray:
    """M T^t by repeated squaring of a dense matrix, or its mean over t; each t is a power of two."""
    T = dense_transition(affinity, config, device)
    M, lengths, done = torch.from_numpy(scores).to(device).flatten(1), walk_lengths(config), 1
    total = torch.zeros_like(M)
    for steps in lengths:
        for _ in range(round(math.log2(steps / done))):
            T = T @ T
        total, done = total + M @ T, steps
    walked = total / len(lengths)
    return np.asarray(walked.reshape(scores.shape).cpu())


def sparse_transition(affinity: AffinityField, config: WalkConfig, device: str) -> Tensor:
    """T transposed, f32 [hw hw] in rows of neighbours; columns of T sum to one as in `stages.walk.transition`."""
    _, height, width = affinity.values.shape
    every = torch.arange(height * width, device=device)
    cells = every.reshape(height, width)
    firsts, seconds, powers = [], [], []
    for (dy, dx), values in zip(affinity.offsets.tolist(), affinity.values, strict=True):
        here, there = pair_windows(height, width, (dy, dx), affinity.offsets, config.border)
        firsts.append(cells[here].flatten())
        seconds.append(cells[there].flatten())
        powers.append(torch.from_numpy(values[here].ravel()).to(device).double() ** config.beta)
    sources, targets = torch.cat([*firsts, *seconds, every]), torch.cat([*seconds, *firsts, every])
    weights = torch.cat([*powers, *powers, torch.ones(len(every), device=device, dtype=torch.float64)])
    nothing = torch.zeros_like(every, dtype=torch.float64)
    shares = (weights / nothing.index_add(0, targets, weights)[targets]).float()
    rounded_off = 1 - nothing.index_add(0, targets, shares.double())
    places = torch.stack([torch.cat([targets, every]), torch.cat([sources, every])])
    entries = torch.cat([shares, rounded_off.float()])
    return torch.sparse_coo_tensor(places, entries, (len(every),) * 2).coalesce().to_sparse_csr()


def sparse_walk(scores: FloatArray, affinity: AffinityField, config: WalkConfig, device: str = "cpu") -> FloatArray:
    """t products with torch's sparse matrix: the honest alternative to squaring."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sparse matrices are in beta
        if device == "cpu":  # SciPy makes it in a tenth of the time
            T = transition(affinity, config).T.tocsr()
            gather = torch.sparse_csr_tensor(T.indptr, T.indices, T.data, T.shape)
        else:
            gather = sparse_transition(affinity, config, device)
    state = torch.from_numpy(np.ascontiguousarray(scores.reshape(len(scores), -1).T)).to(device)
    for _ in range(config.steps):
        state = gather @ state
    return np.ascontiguousarray(state.cpu().numpy().T).reshape(scores.shape)


def merge_all_classes(views: Sequence[Tensor], size: tuple[int, int]) -> FloatArray:
    """Maps of every channel, each view enlarged to the whole image, mirrored back and summed; [channels H W].

    Args:
        views: of each scale [2 channels h w]: the image's scores and its mirror image's.
    """
    total = torch.zeros(views[0].shape[1], *size, device=views[0].device)
    for pair in views:
        full = interpolate(torch.relu(pair), size, mode="bilinear", align_corners=False)
        total += full[0] + full[1].flip(-1)
    return np.asarray((total / (total.amax(dim=(1, 2), keepdim=True) + MAX_EPSILON)).cpu())
