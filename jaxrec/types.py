"""Values that cross module borders.

Dimension letters: B users, T positions, E item slots, S segments (the recent window is the
last), P queries or predictions, N heads, H head width, D model width, L layers, C compressed
tokens of a user state, V items, K top-k or features, M history items.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
# A pytree has no static type that says more than Any; the names say what is meant.
Tree: TypeAlias = Any  # any pytree of arrays
Params: TypeAlias = dict[str, Any]  # parameters: nested names -> arrays
Json: TypeAlias = dict[str, Any]  # an object of a JSON file
UserId: TypeAlias = int | str  # raw id of a user
ItemId: TypeAlias = int | str  # raw id of an item

PAD = 0  # item id of padding; items are 1..V


class Batch(NamedTuple):
    """Histories cut to a layout (`jaxrec.data.pipeline` makes them).

    items: int32 [B, E + 1], item in every slot and, behind the last input, the event to
        predict; 0 is padding. Complete segments are right-aligned (the newest is next to the
        recent window), items inside a segment start at its first slot.
    times: int32 [B, E + 1], seconds since the data set's time origin.
    lengths: int32 [B, S], input items per segment.
    weights: float32 [B, E + 1], weight of the event in a slot *as a target*; 0 = no target.
    user: int32 [B], dense user index, -1 in a padding row.
    history: int32 [B], events of the user before the first weighted target.
    """

    items: Array
    times: Array
    lengths: Array
    weights: Array
    user: Array
    history: Array


class Times(NamedTuple):
    """Times of keys and of queries, int32 seconds [B, T].

    key: time of the event (of a compressed token: of its segment's last event). query: time of the
    prediction (of the next event or the request where the model uses it, else of the event itself).
    """

    key: Array
    query: Array


class Queries(NamedTuple):
    """Encoder outputs as queries: score(v) = <vectors, e_v> + b_v + <gates, features of v>.

    vectors: float32 [..., D], compared with `ItemVectors.vectors`.
    gates: float32 [..., K], weights of the features of history items (`HistoryItems`); None
        unless the model counts repeats.
    """

    vectors: Array
    gates: Array | None = None


class ItemVectors(NamedTuple):
    """What queries are compared with.

    vectors: float32 [..., D], one per item; unit length for cosine similarity.
    bias: float32 [...], added to the item's score; None without `model.item_bias`.
    """

    vectors: Array
    bias: Array | None = None


class HistoryItems(NamedTuple):
    """Items of a user's history, whose scores have features besides the dot product.

    ids: int32 [P, M], 0 is none, an id stands once per query.
    features: float32 [P, M, K], weighed by `Queries.gates` (`jaxrec.items.repeats`).
    """

    ids: Array
    features: Array


class Targets(NamedTuple):
    """The next items that a training batch predicts.

    positions: int [P], positions of the layout that predict, in time order (NumPy, static).
    slots: int [P], item slot that each of them predicts (NumPy, static).
    ids: int32 [B, P], items to predict; 0 where there is none.
    weights: float32 [B, P], 0 where nothing is predicted.
    """

    positions: np.ndarray
    slots: np.ndarray
    ids: Array
    weights: Array


class KV(NamedTuple):
    """Keys and values of compressed tokens: what a state keeps with `model.state=kv`.

    k, v: [L - 1, B, C, N, H], of every layer but the first, inside a layer [B, C, N, H].
    inputs: [B, C, D], what the tokens enter the first layer with, from which its keys and values
        are made again; None where it is the same for all users (`nn.stack.keeps_inputs`).
    times: int32 [B, C] seconds; valid: bool [B, C].
    """

    k: Array
    v: Array
    inputs: Array | None
    times: Array
    valid: Array


class TokenOutputs(NamedTuple):
    """Outputs of compressed tokens: what a state keeps with `model.state=embedding`.

    outputs: [B, C, D], from which every layer makes its K and V anew; times: int32 [B, C]
    seconds; valid: bool [B, C].
    """

    outputs: Array
    times: Array
    valid: Array


TokenState: TypeAlias = KV | TokenOutputs  # what is kept of compressed tokens


class UserState(NamedTuple):
    """A batch of user states: C = max_segments x tokens, newest segment last.

    tokens: the tokens' keys and values, or with `model.state=embedding` their outputs.
    readout: [B, D] output of the newest token: predicts when the recent window is empty.
    memory, memory_times: int32 [B, S n] items of the segments that the tokens cover and their
        seconds, oldest first, 0 where there is none; [B, 0] unless scores count repeats
        (`model.repeat_half_lives`, `model.repeat_half_times`).
    items, times: int32 [B, R] events not compressed yet, oldest first, 0 behind `pending`.
    pending: int32 [B] how many of them are valid.
    segments: int32 [B] segments compressed so far, dropped ones included.
    events: int32 [B] events covered so far, pending ones included.
    """

    tokens: TokenState
    readout: Array
    memory: Array
    memory_times: Array
    items: Array
    times: Array
    pending: Array
    segments: Array
    events: Array
