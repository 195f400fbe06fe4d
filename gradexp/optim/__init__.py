"""How weights change: optimizers, schedules, clipping."""

from gradexp.optim.clipping import CLIPS, Clip
from gradexp.optim.kernels import Update
from gradexp.optim.optimizers import OPTIMIZERS, Elementwise, MakeOptimizer
from gradexp.optim.schedules import SCHEDULES, Schedule

__all__ = [
    "CLIPS",
    "OPTIMIZERS",
    "SCHEDULES",
    "Clip",
    "Elementwise",
    "MakeOptimizer",
    "Schedule",
    "Update",
]
