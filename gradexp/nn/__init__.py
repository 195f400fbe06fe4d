"""What is compared: activations, inits, norms, residuals, and the models built from them."""

from gradexp.nn.activations import ACTIVATIONS, Activation
from gradexp.nn.blueprint import BlockSpec, Blueprint, LayerSpec
from gradexp.nn.inits import INITS, Fans, Init
from gradexp.nn.models import MODELS, Design, WholeDesign, is_whole
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
    "Design",
    "Fans",
    "Init",
    "LayerSpec",
    "Norm",
    "Residual",
    "WholeDesign",
    "is_whole",
]
