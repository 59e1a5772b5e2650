"""Data frames in, recommendations out: `fit`, `load` and the model that they return.

    model = jaxrec.fit(events, user="user_id", item="item_id", time="when", workdir="runs/mine")
    recommended = model.recommend(users, k=10)
    figures = model.evaluate()

docs/python.md shows them at work. Data frames are those of narwhals: pandas, polars, pyarrow.
"""

from jaxrec.api.evaluation import Evaluation, EvaluationRow, Figure
from jaxrec.api.fitting import fit, load
from jaxrec.api.model import FittedModel
from jaxrec.api.states import States

__all__ = ["Evaluation", "EvaluationRow", "Figure", "FittedModel", "States", "fit", "load"]
