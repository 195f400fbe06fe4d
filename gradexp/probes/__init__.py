"""What is measured: gradients at every step; signal, units and certificates at every probe."""
