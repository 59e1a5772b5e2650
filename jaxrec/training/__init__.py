"""From parameters and batches to a trained run: optimizer, step, loop."""
