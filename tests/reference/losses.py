"""Losses of `jaxrec.objective.losses` from their equations, in float64."""

import math

import numpy as np


def _log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def full_softmax(x, table, targets, weights, scale=1.0):
    total = 0.0
    for query, target, weight in zip(np.float64(x), targets, weights, strict=True):
        logits = [scale * float(query @ np.float64(item)) for item in table[1:]]
        total += weight * (_log_sum_exp(logits) - logits[target - 1])
    return total, float(np.sum(weights))


def _kept(positive, target, negatives, negative_ids, false_negative):
    kept = []
    for index, (vector, item) in enumerate(zip(negatives, negative_ids, strict=True)):
        cosine = vector @ positive / (np.linalg.norm(vector) * np.linalg.norm(positive))
        if item not in (0, target) and (false_negative >= 1 or cosine <= false_negative):
            kept.append(index)
    return kept


def sampled_softmax(
    x,
    positives,
    negatives,
    negative_ids,
    targets,
    weights,
    log_q=None,
    scale=1.0,
    false_negative=1.0,
):
    total, count = 0.0, len(negative_ids)
    for p, weight in enumerate(weights):
        query, positive = np.float64(x[p]), np.float64(positives[p])
        own = scale * float(query @ positive)
        others = []
        for m in _kept(positive, targets[p], np.float64(negatives), negative_ids, false_negative):
            logit = scale * float(query @ np.float64(negatives[m]))
            if log_q is not None:
                logit -= math.log(count * math.exp(log_q[m]))
            others.append(logit)
        total += weight * (_log_sum_exp([own, *others]) - own)
    return total, float(np.sum(weights))


def binary(
    x,
    positives,
    negatives,
    negative_ids,
    targets,
    weights,
    scale=1.0,
    false_negative=1.0,
    beta=1.0,
):
    total = 0.0
    for p, weight in enumerate(weights):
        query, positive = np.float64(x[p]), np.float64(positives[p])
        kept = _kept(positive, targets[p], np.float64(negatives), negative_ids, false_negative)
        loss = beta * _softplus(-scale * float(query @ positive))
        for m in kept:
            loss += _softplus(scale * float(query @ np.float64(negatives[m])))
        total += weight * loss / (len(kept) + 1)
    return total, float(np.sum(weights))


def gbce_beta(negatives: int, num_items: int, t: float) -> float:
    alpha = negatives / (num_items - 1)
    return alpha * (t * (1 - 1 / alpha) + 1 / alpha)
