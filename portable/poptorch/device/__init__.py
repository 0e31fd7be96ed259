"""Layer 3: devices. Precision policy, rounding, kernels."""
