"""gradexp: find out by experiment what makes gradients vanish or explode, and what cures it."""

__version__ = "0.1.0"
