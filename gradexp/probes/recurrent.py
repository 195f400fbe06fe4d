"""What recurrent maps return: outputs of all steps, and states that are some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

RECURRENT = frozenset(["lstm", "gru", "rnn_tanh", "rnn_relu"])


def with_states_of_output(args: Sequence[Any], result: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same result, in which the last layer's final states are taken out of its outputs.

    Their values are the same, but a loss of the states alone now has a gradient at the outputs,
    which are what is observed.

    Args:
        args: of the function, as torch's modules give them; those with a list of lengths are of
            packed sequences.
        result: outputs [n, steps, units], [steps, n, units], or [all steps, units] if packed; then
            states [layers * directions, n, units], and what else there is.
    """
    outputs, states, *others = result
    packed = not isinstance(args[3], bool)
    both_ways = bool(args[7 + packed])
    if packed:
        first, last = _ends_of_packed(outputs, args[1])
    else:
        time = 1 if args[8] else 0
        first, last = outputs.select(time, 0), outputs.select(time, -1)
    units = states.shape[-1]
    ends = [last[:, :units], first[:, units:]] if both_ways else [last]
    found = torch.cat((states[: len(states) - len(ends)], torch.stack(ends)))
    return outputs, found, *others


def _ends_of_packed(outputs: Tensor, batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """First and last step of each sequence; at each step fewer and fewer of them go on."""
    sequences = torch.arange(int(batch_sizes[0]))
    lengths = (batch_sizes[:, None] > sequences).sum(0)
    starts = batch_sizes.cumsum(0) - batch_sizes
    at = (starts[lengths - 1] + sequences).to(outputs.device)
    return outputs[: len(sequences)], outputs[at]
