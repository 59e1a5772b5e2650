"""Data frames in, recommendations out: `fit`, `load` and the model that they return."""
