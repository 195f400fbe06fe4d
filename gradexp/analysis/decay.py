"""How gradients change over depth, in decades: powers of ten, whatever their absolute size."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Depth:
    """The change of pre_grad_norm over depth, one value per probe; nan where it is not finite.

    Layers are positions from 0, nearest the input first. Exact zeros have no logarithm: they are
    counted in `zero_layers` and left out of everything else.

    Attributes:
        decay: decades lost per layer toward the input (`decay_per_layer`).
        drop: the largest fall on the way from the output to the input, decades.
        drop_from: the layer at which it begins.
        drop_to: the layer at which it ends, nearer the input.
        rise: the largest growth on that way, decades.
        rise_from: the layer at which it begins.
        rise_to: the layer at which it ends, nearer the input.
        zero_layers: number of layers whose gradient is exactly 0.
    """

    decay: Array
    drop: Array
    drop_from: Array
    drop_to: Array
    rise: Array
    rise_from: Array
    rise_to: Array
    zero_layers: Array


def decay_per_layer(norms: Array) -> Array:
    """The Theil-Sen slope of log10(norms) over the layer index, decades per layer.

    It is the median of the slopes between any two layers, robust to up to 29 % of outlying layers
    (Theil 1950, Sen 1968). `norms` has shape (probes, layers), the result (probes,): nan where
    fewer than two norms are finite and positive.
    """
    log = _log10(norms)
    first, second = np.triu_indices(norms.shape[1], k=1)
    slopes = (log[:, second] - log[:, first]) / (second - first)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.asarray(np.nanmedian(slopes, axis=1))


def over_depth(norms: Array, measured: npt.NDArray[np.bool_] | None = None) -> Depth:
    """Read pre_grad_norm of shape (probes, layers), nearest the input first.

    Layers that are not `measured`, since they have no gradient per example, are passed over.
    """
    log = _log10(norms)
    log[~np.isfinite(norms if measured is None else norms[:, measured]).all(axis=1)] = np.nan
    passed = _passed_on(log)
    drop, drop_from, drop_to = _largest_fall(passed)
    rise, rise_from, rise_to = _largest_fall(-passed)
    zero_layers = (norms == 0).sum(axis=1).astype(np.float64)
    return Depth(
        decay_per_layer(norms), drop, drop_from, drop_to, rise, rise_from, rise_to, zero_layers
    )


def _log10(norms: Array) -> Array:
    """log10, with nan for what is not finite or not positive."""
    usable = np.isfinite(norms) & (norms > 0)
    return np.log10(norms, out=np.full(norms.shape, np.nan), where=usable)


def _passed_on(log: Array) -> Array:
    """The profile with its dips filled, to the lower of the highest values on both sides.

    What is small here and larger again nearer the input came there another way: past a branch
    whose output only weighs what others pass on, as queries and keys do.
    """
    known = np.where(np.isnan(log), -np.inf, log)
    later = np.maximum.accumulate(known[:, ::-1], axis=1)[:, ::-1]
    earlier = np.maximum.accumulate(known, axis=1)
    return np.where(np.isnan(log), np.nan, np.minimum(later, earlier))


def _largest_fall(log: Array) -> tuple[Array, Array, Array]:
    """Per probe the largest fall from a later layer to an earlier one: size, from, to.

    Layers without a logarithm are passed over; a probe without any falls by nan.
    """
    probes, depth = log.shape
    if depth == 0:
        return (np.full(probes, np.nan),) * 3
    known = np.where(np.isnan(log), -np.inf, log)
    peak = np.maximum.accumulate(known[:, ::-1], axis=1)[:, ::-1]
    fall = np.where(np.isnan(log), -np.inf, peak - np.where(np.isnan(log), 0.0, log))
    low = fall.argmax(axis=1)
    row = np.arange(probes)
    above = np.where(np.arange(depth) >= low[:, None], known, -np.inf)
    size = np.where(np.isinf(fall[row, low]), np.nan, fall[row, low])
    return size, above.argmax(axis=1).astype(np.float64), low.astype(np.float64)
