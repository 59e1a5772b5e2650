"""What the stored forms cost: bytes per user and Recall/NDCG of a trained run.

    python -m jaxrec.benchmark.state_forms --workdir=runs/quickstart --output=results/forms.json

Every form answers the same requests: each user's state is compressed from the events before the
last test event, written and read back in that form, and asked for the event; ranks are over the
whole catalog. The embedding form is another model (`model.state=embedding`): give its run beside
the other (`--workdir runs/kv runs/embedding`).
"""

import argparse
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from jaxrec import data
from jaxrec.benchmark import timing
from jaxrec.model import states
from jaxrec.model.recommender import Model
from jaxrec.ranking import retrieval
from jaxrec.runtime.progress import track
from jaxrec.serving import Recommender, build, rows
from jaxrec.serving.rows import Events
from jaxrec.state_store.forms import FORMS, decode_state, encode_state
from jaxrec.types import Params, UserState

BATCH = 64


def ranks(
    rec: Recommender, histories: list[Events], forms: tuple[str, ...] = FORMS
) -> dict[str, np.ndarray]:
    """form -> int [U], rank of each history's last item when all before it is known (best 0).

    histories: dense items and model times, two events at least.
    """
    compress = jax.jit(functools.partial(states.compress, rec.model))
    ask = jax.jit(functools.partial(_ask, rec.model))
    table = rec.model.item_table(rec.params)
    order = np.argsort([len(items) for items, _ in histories], kind="stable")
    found = {form: np.zeros(len(histories), np.int64) for form in forms}
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    for batch in track(batches, len(batches), "batches of users"):
        counts = np.asarray([len(histories[i].items) - 1 for i in batch], np.int32)
        width = 1 << int(counts.max() - 1).bit_length()  # few shapes
        items, times = np.zeros((2, BATCH, width), np.int32)
        target, now = np.ones(BATCH, np.int32), np.zeros(BATCH, np.int32)
        for row, i in enumerate(batch):
            line, clock = histories[i]
            items[row, : counts[row]], times[row, : counts[row]] = line[:-1], clock[:-1]
            target[row], now[row] = line[-1], clock[-1]
        known = np.concatenate([counts, np.zeros(BATCH - len(counts), np.int32)])
        state = rows.to_host(compress(rec.params, items, times, known))
        for form in forms:
            again = decode_state(encode_state(state, form), form)
            x, own = ask(rec.params, again, now)
            best = retrieval.rank_of_targets(x, table, target, None, own)
            found[form][batch] = np.asarray(best)[: len(batch)]
    return found


def _ask(model: Model, params: Params, state: UserState, now: Any) -> Any:
    return states.query(model, params, state, now), states.own_items(model, state)


def quality(rank: np.ndarray, k: int) -> dict[str, float]:
    """Recall and NDCG at k of one target per user."""
    hit = rank < k
    gain = np.where(hit, 1 / np.log2(rank + 2), 0.0)
    return {f"recall@{k}": float(hit.mean()), f"ndcg@{k}": float(gain.mean())}


def measure(rec: Recommender, histories: list[Events]) -> list[dict[str, Any]]:
    """One line per form: bytes of a row and of its vectors, quality, and what float32 loses to."""
    found = ranks(rec, histories)
    result: list[dict[str, Any]] = []
    for form, rank in found.items():
        spec = rows.row_spec(rec.model, form, 0)
        line = {
            "state": rec.config.model.state,
            "form": form,
            "row_bytes": spec.row_bytes,
            "vector_bytes": sum(f.nbytes for f in spec.fields if f.name in rows.TOKEN_COLUMNS),
            "users": len(rank),
            **quality(rank, 10),
            "ranks_that_differ": int((rank != found[FORMS[0]]).sum()),
        }
        line["ndcg_of_float32"] = (
            line["ndcg@10"] / max(result[0]["ndcg@10"], 1e-12) if result else 1.0
        )
        result.append(line)
        print(
            f"{line['state']} in {form}: {line['row_bytes']:,} bytes per user, recall@10 "
            f"{line['recall@10']:.5f}, ndcg@10 {line['ndcg@10']:.5f}, "
            f"{line['ranks_that_differ']} of {len(rank)} ranks differ from float32",
            flush=True,
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jaxrec.benchmark.state_forms", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--workdir", required=True, nargs="+", help="folders of training runs")
    parser.add_argument("--cache-dir", default="", help="prepared data, if not that of the runs")
    parser.add_argument("--users", type=int, default=0, help="a sample of so many; 0: all")
    parser.add_argument("--output", default="", help="JSON file of the result")
    args = parser.parse_args()
    lines = [
        {"run": workdir} | line
        for workdir in args.workdir
        for line in measure(*_load(workdir, args.cache_dir, args.users))
    ]
    timing.save(timing.report("forms", lines, settings={"users": args.users}), args.output)


def _load(workdir: str, cache_dir: str, users: int) -> tuple[Recommender, list[Events]]:
    """A run's model and the histories of a sample of its users."""
    rec = Recommender.load(workdir, devices=jax.local_devices()[:1])
    prepared = data.prepare(rec.config.data, cache_dir or pathlib.Path(workdir) / "data")
    build.check_data(rec, prepared)
    order = np.random.default_rng(0).permutation(prepared.num_users)[: users or None]
    chosen = [int(user) for user in np.sort(order) if prepared.lengths[user] > 1]
    records = prepared.source.__getitems__(chosen)
    return rec, [Events(record.items, record.times) for record in records]


if __name__ == "__main__":
    main()
