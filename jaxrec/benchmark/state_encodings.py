"""What the encodings of stored states cost: bytes per user and Recall/NDCG of a trained run.

    python -m jaxrec.benchmark.state_encodings --workdir=runs/quickstart \\
        --output=results/forms.json

Every encoding answers the same requests. Each user's state is compressed from the events before
the last test event, encoded, decoded again and queried for that event; ranks are over the whole
catalog. A state of token outputs is another model (`model.state=embedding`): give both runs
(`--workdir runs/kv runs/embedding`).
"""

import argparse
import functools
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from jaxrec import data, ranking
from jaxrec.benchmark import timing
from jaxrec.model import states
from jaxrec.model.recommender import Model
from jaxrec.runtime.progress import track
from jaxrec.serving import Recommender, build, state_rows
from jaxrec.serving.state_rows import Events
from jaxrec.state_store.encodings import ENCODINGS, decode_state, encode_state
from jaxrec.types import HistoryItems, Json, Params, Queries, UserState

BATCH = 64


def ranks(
    rec: Recommender, histories: Sequence[Events], encodings: Sequence[str] = ENCODINGS
) -> dict[str, np.ndarray]:
    """Ranks int [U] of every history's last item, per encoding of the state before it.

    0 is the best rank. histories: dense items and model times, at least two events each.
    """
    compress = jax.jit(functools.partial(states.compress, rec.model))
    query = jax.jit(functools.partial(_query, rec.model))
    index = rec.model.item_index(rec.params)
    order = np.argsort([len(items) for items, _ in histories], kind="stable")
    result = {encoding: np.zeros(len(histories), np.int64) for encoding in encodings}
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    for batch in track(batches, len(batches), "batches of users"):
        counts = np.asarray([len(histories[i].items) - 1 for i in batch], np.int32)
        width = 1 << int(counts.max() - 1).bit_length()  # powers of two: few compiled shapes
        items, times = np.zeros((2, BATCH, width), np.int32)
        target, now = np.ones(BATCH, np.int32), np.zeros(BATCH, np.int32)
        for row, i in enumerate(batch):
            history = histories[i]
            items[row, : counts[row]] = history.items[:-1]
            times[row, : counts[row]] = history.times[:-1]
            target[row], now[row] = history.items[-1], history.times[-1]
        lengths = np.concatenate([counts, np.zeros(BATCH - len(counts), np.int32)])
        state = state_rows.to_host(compress(rec.params, items, times, lengths))
        for encoding in encodings:
            decoded = decode_state(encode_state(state, encoding), encoding)
            queries, history = query(rec.params, decoded, now)
            best = ranking.rank_of_targets(queries, index, target, history=history)
            result[encoding][batch] = np.asarray(best)[: len(batch)]
    return result


def _query(
    model: Model, params: Params, state: UserState, now: jax.Array
) -> tuple[Queries, HistoryItems | None]:
    return states.query(model, params, state, now), states.history_items(model, state)


def quality(rank: np.ndarray, k: int) -> dict[str, float]:
    """Recall and NDCG at k of one target per user, from ranks [U].

    >>> quality(np.asarray([0, 10]), 10)
    {'recall@10': 0.5, 'ndcg@10': 0.5}
    """
    hit = rank < k
    gain = np.where(hit, 1 / np.log2(rank + 2), 0.0)
    return {f"recall@{k}": float(hit.mean()), f"ndcg@{k}": float(gain.mean())}


def measure(rec: Recommender, histories: Sequence[Events]) -> list[Json]:
    """One row per encoding: bytes per user, quality, and quality relative to float32."""
    by_encoding = ranks(rec, histories)
    result: list[Json] = []
    for encoding, rank in by_encoding.items():
        spec = state_rows.row_spec(rec.model, encoding, 0)
        line = {
            "state": rec.config.model.state,
            "form": encoding,
            "row_bytes": spec.row_bytes,
            "vector_bytes": sum(
                f.nbytes for f in spec.fields if f.name in state_rows.TOKEN_COLUMNS
            ),
            "users": len(rank),
            **quality(rank, 10),
            "ranks_that_differ": int((rank != by_encoding[ENCODINGS[0]]).sum()),
        }
        line["ndcg_of_float32"] = (
            line["ndcg@10"] / max(result[0]["ndcg@10"], 1e-12) if result else 1.0
        )
        result.append(line)
        print(
            f"{line['state']} in {encoding}: {line['row_bytes']:,} bytes per user, recall@10 "
            f"{line['recall@10']:.5f}, ndcg@10 {line['ndcg@10']:.5f}, "
            f"{line['ranks_that_differ']} of {len(rank)} ranks differ from float32",
            flush=True,
        )
    return result


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrec.benchmark.state_encodings", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--workdir", required=True, nargs="+", help="folders of training runs")
    parser.add_argument("--cache-dir", default="", help="prepared data, if not that of the runs")
    parser.add_argument("--users", type=int, default=0, help="size of the sample; 0: all")
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    lines = [
        {"run": workdir} | line
        for workdir in args.workdir
        for line in measure(*_load(workdir, args.cache_dir, args.users))
    ]
    report = timing.report(
        "jaxrec.benchmark.state_encodings", lines, kind="forms", settings={"users": args.users}
    )
    timing.save(report, args.output)


def _load(workdir: str, cache_dir: str, users: int) -> tuple[Recommender, list[Events]]:
    """A run's model, and the histories of a sample of its users."""
    rec = Recommender.load(workdir, devices=jax.local_devices()[:1])
    prepared = data.prepare(rec.config.data, cache_dir or pathlib.Path(workdir) / "data")
    build.check_data(rec, prepared)
    order = np.random.default_rng(0).permutation(prepared.num_users)[: users or None]
    chosen = [int(user) for user in np.sort(order) if prepared.lengths[user] > 1]
    records = prepared.source.__getitems__(chosen)
    return rec, [Events(record.items, record.times) for record in records]


if __name__ == "__main__":
    main()
