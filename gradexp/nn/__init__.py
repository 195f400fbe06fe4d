"""What is compared: activations, inits, norms, residuals, and the models built from them."""

from gradexp.nn.activations import ACTIVATIONS, Activation
from gradexp.nn.blueprint import BlockSpec, Blueprint, LayerSpec
from gradexp.nn.inits import INITS, Fans, Init
from gradexp.nn.models import MODELS, Plan, WholePlan, is_whole
from gradexp.nn.norms import NORMS, Norm
from gradexp.nn.residuals import RESIDUALS, Residual

__all__ = [
    "ACTIVATIONS",
    "INITS",
    "MODELS",
    "NORMS",
    "RESIDUALS",
    "Activation",
    "BlockSpec",
    "Blueprint",
    "Fans",
    "Init",
    "LayerSpec",
    "Norm",
    "Plan",
    "Residual",
    "WholePlan",
    "is_whole",
]
