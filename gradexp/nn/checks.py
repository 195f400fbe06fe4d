"""Whether a part is what its entry says: asked when it is first used, so that no figure lies.

A false fact is worse than a missing one: with a turn left out, units that fire would be certified
dead; a function that works in place would falsify what is measured before it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gradexp.errors import ConfigError
from gradexp.nn.activations import Activation

REACH = 40.0  # how far from 0 the points lie, and
PER_UNIT = 100  # how many between two whole numbers
FAR = (1e3, 1e6)
STEEP_ENOUGH = 0.02
BOUND = 1e3  # no bounded activation in use comes near it
NOISE = 1e-9  # of the largest value: what rounding in float64 may do to a monotone function


def check_activation(name: str, activation: Activation) -> None:
    """Refuse an activation that is not elementwise, works in place, or lacks a declared fact.

    Raises:
        ConfigError: it names the activation and what does not hold.
    """
    function = copy.deepcopy(activation.module(1)).double().eval()
    for problem in _problems(function, activation):
        raise ConfigError(f"activation '{name}' {problem}")


def _problems(function: nn.Module, facts: Activation) -> Iterator[str]:
    points = _points(facts)
    values = _applied(function, points)
    if isinstance(values, str):
        yield values
        return
    yield from _not_elementwise(function, points, values)
    slope = slopes(function, points[:, None])[:, 0]
    flat = _inside(points, facts.flat)
    if bool((slope[flat] != 0).any()):
        at = float(points[flat][slope[flat] != 0][0])
        yield f"is said to be flat at {at:g}, but has a slope there: mend `flat`"
    yield from _wrong_turns(points, values, facts.turns)
    if facts.steep and bool(((slope != 0) & (slope.abs() < STEEP_ENOUGH)).any()):
        yield f"is said to be steep, but has slopes between 0 and {STEEP_ENOUGH}: mend `steep`"
    if facts.bounded and not bool((values.abs() < BOUND).all()):
        yield "is said to be bounded, but grows without bound: mend `bounded`"


def _points(facts: Activation) -> Tensor:
    """Rising points: a fine grid, far ones, and both sides of every declared place."""
    places = [*(facts.turns or ()), *(end for interval in facts.flat for end in interval)]
    finite = [place for place in places if abs(place) < REACH]
    near = [place + side / (10 * PER_UNIT) for place in finite for side in (-1, 0, 1)]
    far = [sign * distance for sign in (-1, 1) for distance in FAR]
    end = int(REACH * PER_UNIT)
    grid = torch.arange(-end, end + 1, dtype=torch.float64) / PER_UNIT
    return torch.cat((grid, torch.tensor([*near, *far], dtype=torch.float64))).sort().values


def _applied(function: nn.Module, points: Tensor) -> Tensor | str:
    """The values at the points [n]; or what is wrong with the way they are computed."""
    given = points[:, None].clone()
    with torch.no_grad():
        values = function(given)
    if not isinstance(values, Tensor) or values.shape != given.shape:
        return "must return a tensor of the shape of its input"
    if not torch.equal(given[:, 0], points):
        return "works in place: it changes its input, which is measured too"
    return values[:, 0]


def _not_elementwise(function: nn.Module, points: Tensor, values: Tensor) -> Iterator[str]:
    """Each value may depend on nothing but its own input."""
    with torch.no_grad():
        alone = function(points[::97, None].flip(0))[:, 0].flip(0)
    if not torch.equal(alone.nan_to_num(), values[::97].nan_to_num()):
        yield "is not elementwise: a value depends on its neighbours"


def slopes(function: nn.Module, points: Tensor) -> Tensor:
    """The derivative at each point, of their shape."""
    with torch.enable_grad():
        points = points.clone().requires_grad_()
        values = function(points)
        if not values.requires_grad:  # a constant
            return torch.zeros_like(points)
        (slope,) = torch.autograd.grad(values.sum(), points)
    return slope.detach()


def _inside(points: Tensor, intervals: tuple[tuple[float, float], ...]) -> Tensor:
    inside = torch.zeros_like(points, dtype=torch.bool)
    for low, high in intervals:
        inside |= (points >= low) & (points <= high)
    return inside


def _wrong_turns(points: Tensor, values: Tensor, turns: tuple[float, ...] | None) -> Iterator[str]:
    """Between declared turns a function only rises or only falls."""
    if turns is None:
        return
    noise = NOISE * float(values[points.abs() <= REACH].abs().max())
    ends = [-float("inf"), *sorted(turns), float("inf")]
    for low, high in itertools.pairwise(ends):
        between = (points >= low) & (points <= high)
        rises = values[between].diff()
        if bool((rises > noise).any()) and bool((rises < -noise).any()):
            yield (
                f"both rises and falls between {low:g} and {high:g}: `turns` must name every "
                "place where it turns, or be None"
            )
