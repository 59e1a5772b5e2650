"""Which tests the installed JAX can run."""

from jax.experimental.pallas import mosaic_gpu

# since JAX 0.12 the interpreter knows all that the kernels for Hopper do
collect_ignore = [] if hasattr(mosaic_gpu, "InterpretGPUParams") else ["test_hopper_values.py"]
