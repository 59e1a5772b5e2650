"""What a recommender could reach at best on planted returns: the row `oracle`.

The oracle is told what models must learn: which items return, and how long after the user last had
them (`chance_of_return` of `data.datasets.planted` and `synthetic`). It ranks the items that the
user had by their chance to return now. What it cannot know is which of those that are due comes
next. What full history lacks of the oracle is lost before any compression: it has not learned it,
or its layout does not reach so far.
"""

import numpy as np

from jaxrec.data.datasets import planted, synthetic
from jaxrec.evaluation.baselines import Rule
from jaxrec.session import Session

NAME = "oracle"
SENTENCE = (
    f" `{NAME}` is no model: it is told which items return and how long after the user last had "
    "them, and ranks those by their chance to return now. What full history lacks of it is lost "
    "before any compression."
)


def rule(session: Session) -> Rule:
    """The oracle of a session's data, in which returns are known (`datasets.PLANTED`).

    Items that could return and never did are not among its own: nobody asks for them. Raises
    ValueError for data that do not say which events are returns.
    """
    config, prepared = session.config.data, session.prepared
    durable = np.zeros(prepared.num_items + 1, bool)
    returning = np.concatenate([session.returning(user) for user in range(prepared.num_users)])
    durable[prepared.histories.items[returning]] = True
    everyday = np.zeros_like(durable)
    if config.dataset == "synthetic":
        everyday[1:] = synthetic.is_everyday(prepared.vocabulary.ids, config.synthetic)

    def order(history: np.ndarray) -> np.ndarray:
        items, age = np.unique(history[::-1], return_index=True)  # age 0: the last event
        items, age = items[durable[items]], age[durable[items]]
        if config.dataset == "planted":
            chance = planted.chance_of_return(age + 1, config.planted)
        else:
            since = np.cumsum(everyday[history[::-1]])
            chance = synthetic.chance_of_return(since[age], config.synthetic)
        return items[np.lexsort((age, -chance))]

    return Rule(order, 0)
