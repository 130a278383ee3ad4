"""Helios in pure torch: transformer, memory and pyramid sampler. Knows nothing of ComfyUI."""
