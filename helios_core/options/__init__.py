"""Ways to go faster that are not exact, or that have paid on no device measured so far. All are off by default, and
stand beside the journey of a chunk: they wrap what the loop asks of the model."""
