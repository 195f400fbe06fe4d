"""torch's fused optimizer kernels, called without the optimizer around them.

At every step `torch.optim` opens a profiler range, asks for hooks, collects its tensors and sorts
them by device: several times what the kernel itself takes for a small net.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

Group: TypeAlias = dict[str, Any]
Tensors: TypeAlias = "list[Tensor]"
States: TypeAlias = "list[dict[str, Tensor]]"
Kernel: TypeAlias = Callable[[Group, Tensors, Tensors, States], None]
"""Updates tensors that no graph knows of in place, given group, tensors, gradients and states."""


class Update:
    """An optimizer's step at a learning rate; by its kernel alone where it has one.

    The first step, and the first after its state was loaded, is the optimizer's own: it makes the
    state and checks what it was given.
    """

    def __init__(self, optimizer: Optimizer, kernel: Kernel | None) -> None:
        self.optimizer = optimizer
        self._kernel = kernel if optimizer.param_groups[0].get("fused") else None
        self._begun = False

    def __call__(self, lr: float) -> None:
        """Update all parameters by their gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self._kernel and self._begun:
            self._step_by(self._kernel)
        else:
            self.optimizer.step()
            self._begun = True

    def _step_by(self, kernel: Kernel) -> None:
        for group in self.optimizer.param_groups:
            parameters = group["params"]
            gradients = [one.grad for one in parameters]
            kernel(group, parameters, gradients, [self.optimizer.state[one] for one in parameters])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the state of an optimizer."""
        self.optimizer.load_state_dict(state)
        self._begun = False


def sgd_kernel(group: Group, parameters: Tensors, gradients: Tensors, states: States) -> None:
    """What `torch.optim.SGD` does from its second step on."""
    import torch

    momentum = group["momentum"]
    torch._fused_sgd_(
        parameters,
        gradients,
        [state["momentum_buffer"] for state in states] if momentum else [],
        weight_decay=group["weight_decay"],
        momentum=momentum,
        lr=group["lr"],
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        maximize=group["maximize"],
        is_first_step=False,
    )


def adam_kernel(group: Group, parameters: Tensors, gradients: Tensors, states: States) -> None:
    """What `torch.optim.Adam` does from its second step on, or AdamW with its decoupled decay."""
    import torch

    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1)
    step = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    step(
        parameters,
        gradients,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        steps,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=group["maximize"],
    )
