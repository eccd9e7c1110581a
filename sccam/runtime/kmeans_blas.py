"""k-means with all restarts in one matrix product, exact: Lloyd's passes from greedy k-means++ starts.

    repeat:  c(i) = argmin_c |x_i - m_c|^2,   m_c = mean of the points of c

Source: Lloyd 1982; Arthur & Vassilvitskii 2007 (k-means++), with the 2 + ln K trials a centre that their section 5
proposes and scikit-learn takes. Rules that decide when a restart stops, and what an empty cluster becomes, are
scikit-learn's, which stages/cluster.py holds as the judge.
Differs: the restarts draw other numbers from a seed; the inertia is that of the means of the last assignment.
Where the products come from: kmeans_forms.py. They run on threads of our own, one call of BLAS each: BLAS's threads
wait for each other in a spin, which takes longer than the product where another process has a core.

    symbol   name here   shape
    x        points      [N D]
    c        labels      [N R], cluster of each point in each restart, 0 .. K - 1
    m        means       [S D], S = R K; formed by one of the two forms only
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import ThreadpoolController

from sccam.errors import ConfigError, NumericError, ShapeError
from sccam.runtime.kmeans_forms import Array, Form, GramForm, PointsForm, Slabs
from sccam.runtime.native import thread_count
from sccam.stages.cluster import KMeansFit
from sccam.structures import FloatArray

TOLERANCE = 1e-4  # of the mean variance of a channel; scikit-learn's default
POINTS_A_CLUSTER = 16  # N / S up to which Gram's form is faster; equal at 16 to 20, for D 1280 and 4096, K 2 to 10
ROUNDING = 32  # distances below this many roundings of |x|^2 are 0; equal points come out at 0 to 14, D up to 4096


def k_means(
    points: FloatArray,
    k: int,
    *,
    n_init: int,
    max_iterations: int,
    seed: int,
    tolerance: float = TOLERANCE,
    threads: int = 0,
) -> KMeansFit:
    """The best of several restarts.

    Args:
        points: [N D] float32; float64 is computed in float64.
        k: clusters, 1 to N. Fewer are found where fewer points differ.
        n_init: restarts.
        max_iterations: passes of one restart.
        seed: of the starts.
        tolerance: a restart stops when the squared moves of its means add up to less than this times the mean
            variance of a channel; sooner when no point changes its cluster.
        threads: 0 takes the cores of this process. Their number does not change the result.

    Raises:
        ShapeError: points are not [N D], or there are fewer than k.
        ConfigError: a count is below 1.
        NumericError: a point is NaN or infinite, or too large to be squared.
    """
    if points.ndim != 2 or points.size == 0 or not 1 <= k <= len(points):
        raise ShapeError(f"points have shape {points.shape}, expected [N, D] with N at least k = {k} and D at least 1")
    if min(n_init, max_iterations) < 1:
        raise ConfigError(f"n_init is {n_init} and max_iterations {max_iterations}; both must be at least 1")
    mean = points.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise NumericError("a point is NaN or infinite", where=f"k-means of {len(points)} points")
    centred = np.ascontiguousarray(points - mean.astype(points.dtype))
    with (
        ThreadpoolController().limit(limits=1, user_api="blas"),
        ThreadPoolExecutor(threads or thread_count()) as executor,
    ):
        slabs = Slabs(executor)
        form = form_of(len(points), points.shape[1], k * n_init)(centred, slabs)
        scatter = float(form.squared.sum(dtype=np.float64))
        if not np.isfinite(scatter):
            raise NumericError("squared distances overflow", where=f"k-means of {len(points)} points")
        starts, distances = _starts(form, k, n_init, np.random.default_rng(seed))
        labels, inertias, passes = _lloyd(form, starts, distances, k, max_iterations, tolerance * scatter / points.size)
    best, inertia = _best(centred, labels, inertias, k, noise=_noise(points) * scatter)
    return KMeansFit(labels[:, best].astype(np.int32), inertia, int(passes[best]))


def form_of(points: int, channels: int, clusters: int) -> Callable[[Array, Slabs], Form]:
    """The faster form for N points of D channels and S clusters; never Gram's where N > D.

    G costs N^2 D / 2 multiplications, and the passes that it saves some N D S: a matter of N / S.
    """
    return GramForm if points <= min(channels, POINTS_A_CLUSTER * clusters) else PointsForm


def _starts(form: Form, k: int, restarts: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Greedy k-means++ in all restarts: the cluster of each point [N R], its squared distance [R N] from the centre."""
    n, trials = len(form.squared), 2 + int(math.log(k))
    chosen = generator.integers(n, size=restarts)
    nearest = form.distances_from(chosen)  # [R N]
    labels = np.zeros((restarts, n), np.int64)
    for c in range(1, k):
        cumulative = np.cumsum(nearest, axis=1, dtype=np.float64)
        draws = generator.random((restarts, trials)) * cumulative[:, -1:]
        found = [np.searchsorted(sums, draw, side="right") for sums, draw in zip(cumulative, draws, strict=True)]
        candidates = np.minimum(np.stack(found), n - 1)  # where every distance is 0, the last point
        distances = form.distances_from(candidates.reshape(-1)).reshape(restarts, trials, n)
        potentials = np.minimum(distances, nearest[:, None]).sum(axis=2, dtype=np.float64)
        distances = distances[np.arange(restarts), potentials.argmin(axis=1)]
        labels[distances < nearest] = c
        np.minimum(nearest, distances, out=nearest)
    return np.ascontiguousarray(labels.T), nearest


def _lloyd(
    form: Form, labels: Array, distances: Array, k: int, max_iterations: int, tolerance: float
) -> tuple[Array, Array, Array]:
    """Passes until every restart has stopped: labels [N R], inertia [R] by subtraction, passes [R]."""
    restarts = labels.shape[1]
    final, inertias, passes = np.empty_like(labels), np.empty(restarts), np.empty(restarts, np.int64)
    active = np.arange(restarts)
    labels, counts = _filled(labels, distances, k, form.squared)
    for iteration in range(1, max_iterations + 1):
        norms, moved = form.move(labels + k * np.arange(len(active)), counts)
        norms = np.where(counts == 0, np.inf, norms)  # nobody's nearest
        new, distances = _nearest(form, norms, len(active), k)
        new, counts = _filled(new, distances, k, form.squared)
        unchanged = (new == labels).all(axis=0)
        stopped = unchanged | (moved.reshape(-1, k).sum(axis=1) <= tolerance) | (iteration == max_iterations)
        done = active[stopped]
        final[:, done] = new[:, stopped]
        inertias[done] = distances[stopped].sum(axis=1, dtype=np.float64)
        passes[done] = np.minimum(iteration + unchanged[stopped], max_iterations)
        if stopped.all():
            break
        labels = new
        if stopped.any():
            going_on = np.repeat(~stopped, k)
            form.keep(going_on, ~stopped)
            labels, counts, active = new[:, ~stopped], counts[going_on], active[~stopped]
    return final, inertias, passes


def _nearest(form: Form, norms: Array, restarts: int, k: int) -> tuple[Array, Array]:
    """The nearest mean of each point in each restart [N R], the first of equal ones, and its distance [R N]."""
    labels = np.empty((len(form.squared), restarts), np.int64)
    distances = np.empty((restarts, len(form.squared)), form.squared.dtype)
    shift = norms.astype(form.squared.dtype)
    for rows, inner in form.inner_products():
        score = inner.reshape(-1, restarts, k)
        score *= -2
        score += shift.reshape(restarts, k)
        labels[rows] = score.argmin(axis=2)
        least = np.take_along_axis(score, labels[rows][:, :, None], axis=2)[:, :, 0]
        distances[:, rows] = least.T + form.squared[rows]
    return labels, distances


def _filled(labels: Array, distances: Array, k: int, squared: Array) -> tuple[Array, Array]:
    """Gives each empty cluster the point that is farthest from its mean, as scikit-learn does; and counts [S].

    A cluster stays empty where no point is left that differs from its mean, or lies in a cluster with others.
    """
    numbered = labels + k * np.arange(labels.shape[1])
    counts = np.bincount(numbered.reshape(-1), minlength=k * labels.shape[1])
    for restart in np.unique(np.flatnonzero(counts == 0) // k):
        own, count, distance = labels[:, restart], counts.reshape(-1, k)[restart], distances[restart]  # views
        farthest = (i for i in np.argsort(-distance, kind="stable") if distance[i] > _noise(squared) * squared[i])
        for empty in np.flatnonzero(count == 0):
            point = next((i for i in farthest if count[own[i]] > 1), None)
            if point is None:
                break
            count[own[point]] -= 1
            own[point], count[empty] = empty, 1
    return labels, counts


def _best(points: Array, labels: Array, inertias: Array, k: int, noise: float) -> tuple[int, float]:
    """The restart of least inertia, and that inertia; those that rounding cannot tell apart are computed anew."""
    close = np.flatnonzero(inertias <= inertias.min() + noise)
    seen: dict[bytes, int] = {}
    for restart in close:  # one of each partition, whatever the names of its clusters
        _, first, inverse = np.unique(labels[:, restart], return_index=True, return_inverse=True)
        seen.setdefault(first[inverse].tobytes(), int(restart))
    exact = {restart: inertia_of(points, labels[:, restart], k) for restart in seen.values()}
    best = min(exact, key=lambda restart: (exact[restart], restart))
    return best, exact[best]


def inertia_of(points: FloatArray, assignment: Array, k: int) -> float:
    """Sum of the squared distances of all points [N D] from the means of their clusters."""
    total = 0.0
    for c in range(k):
        members = points[assignment == c]
        if len(members):
            members -= members.mean(axis=0, dtype=np.float64).astype(points.dtype)
            total += float(np.einsum("nd,nd->n", members, members).sum(dtype=np.float64))
    return total


def _noise(values: Array) -> float:
    """Relative rounding of a squared distance that is a difference of squares."""
    return ROUNDING * float(np.finfo(values.dtype).eps)
