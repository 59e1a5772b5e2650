"""What a session joins: the validation of a run ranks as the evaluation of it will."""

import jax
import numpy as np
import pytest

from jaxrec import ranking
from jaxrec.config import Config
from jaxrec.session import Session


def make_config(filter_seen):
    config = Config()
    config.data.dataset = "synthetic"
    config.data.min_item_events = 1
    synthetic = config.data.synthetic
    synthetic.users, synthetic.items, synthetic.events, synthetic.gap = 30, 60, 30, 12
    synthetic.interests = 4
    config.layout.segment_size, config.layout.tokens, config.layout.max_segments = 5, 2, 3
    config.model.width, config.model.heads, config.model.layers = 8, 2, 2
    config.eval.batch_size, config.eval.filter_seen = 10, filter_seen
    config.train.validation_users = 0
    return config


def recall_at_10(session, params):
    """Mean over users, from the scores of the whole catalog."""
    hits, predict = [], jax.jit(session.model.predict)
    for batch in session.eval_batches(split="validation"):
        queries = predict(params, batch)
        for row, slot in zip(*np.nonzero(batch.weights), strict=True):
            query = jax.tree.map(lambda a, at=(row, slot): a[at][None], queries)
            scores = np.array(ranking.scores(query, session.model.item_index(params), None)[0])
            scores[0] = -np.inf
            target = batch.items[row, slot]
            if session.config.eval.filter_seen:
                seen = session.history(int(batch.user[row]))[: -2 * session.config.data.holdout]
                scores[np.setdiff1d(seen, [target])] = -np.inf
            hits.append((scores >= scores[target]).sum() <= 10)
    return float(np.mean(hits))


def test_validation_leaves_out_seen_items_as_the_evaluation_does(tmp_path):
    found = {}
    for filter_seen in (False, True):
        session = Session(make_config(filter_seen), tmp_path)
        params = session.model.init(jax.random.key(0))
        found[filter_seen] = session.validation()(params)["recall@10"]
        assert found[filter_seen] == pytest.approx(recall_at_10(session, params))
    assert found[True] > found[False]
