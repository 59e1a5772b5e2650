"""Online serving under load: how many requests a second, at which latency.

    python -m benchmarks.online --workdir=RUN --states=STORE --full-workdir=FULL_RUN \
        --output=results/service.json

Starts `jaxrec serve` in a process of its own on a copy of the store, and sends requests from this
one: arrivals are a Poisson process, at rising rates, a share of them appends (`--appends`). Users
are drawn from the store, so states are of every age it has. Latency counts from the moment at which
a request should have been sent: one that waits for a connection, or behind a slow one, counts its
whole wait (no coordinated omission). A rate is sustained when every answer is a 200 and the 99th
percentile of all requests is at most `--limit-ms`. The same requests then go to a full-history
model behind the same service (`benchmarks.full_service`).
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import arrivals
from benchmarks.arrivals import Outcome, Target
from jaxrec.benchmark import timing
from jaxrec.data.catalog import Catalog
from jaxrec.state_store.store import UserStateStore
from jaxrec.types import Json, UserId

GROWTH = 1.5  # of a rate to the next
PERCENTILES = (50, 90, 99, 99.9)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and saves."""
    args = parser().parse_args(argv)
    catalog = Catalog.load(Path(args.workdir))
    with tempfile.TemporaryDirectory(prefix="online-") as folder:
        copy = f"{folder}/states"
        with UserStateStore.open(args.states, None) as store:
            store.copy(copy)
            users = sampled(store, args.users, args.seed)
            ages = ages_of(store, users)
        requests = arrivals.Requests(users, catalog, k=args.k, appends=args.appends)
        serve = [sys.executable, "-m", "jaxrec.cli.serve", f"--workdir={args.workdir}"]
        commands = {"compressed": [*serve, f"--states={copy}", *args.serve]}
        if args.full_workdir:
            full = [sys.executable, "-m", "benchmarks.full_service"]
            commands["full"] = [*full, f"--workdir={args.full_workdir}", *args.serve]
        services = {
            name: measured(name, [*command, "--port=0"], requests, args)
            for name, command in commands.items()
        }
    result = timing.report(
        "benchmarks.online",
        [row for service in services.values() for row in service["rows"]],
        users=len(users),
        ages=ages,
        appends=args.appends,
        limit_ms=args.limit_ms,
        seconds=args.seconds,
        services={name: service["summary"] for name, service in services.items()},
    )
    timing.save(result, args.output)
    for name, service in services.items():
        print(f"{name}: {json.dumps(service['summary'])}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.online",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--workdir", required=True, help="run with layout.mode=compressed")
    flags.add_argument("--states", required=True, help="its store; it is copied, not changed")
    flags.add_argument("--full-workdir", default="", help="run with layout.mode=full, same data")
    flags.add_argument("--output", default="", help="JSON file")
    flags.add_argument("--seconds", type=float, default=30.0, help="of arrivals, per rate")
    flags.add_argument("--first-rate", type=float, default=4.0, help="requests per second")
    flags.add_argument("--most-rates", type=int, default=16, help=f"each {GROWTH} times the last")
    flags.add_argument("--appends", type=float, default=0.1, help="share of the requests")
    flags.add_argument("--limit-ms", type=float, default=50.0, help="of the 99th percentile")
    flags.add_argument("--k", type=int, default=10, help="items of a list")
    flags.add_argument("--users", type=int, default=2000, help="drawn from the store")
    flags.add_argument("--connections", type=int, default=256, help="at most, at a time")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument(
        "--serve", nargs="*", default=[], help="flags of both services, such as max-batch=64"
    )
    return flags


def sampled(store: UserStateStore, most: int, seed: int) -> list[UserId]:
    """Users of the store, drawn without replacement."""
    users = [user for part in store.users() for user in part]
    order = np.random.default_rng(seed).permutation(len(users))[:most]
    return [users[i] for i in order]


def ages_of(store: UserStateStore, users: list[UserId]) -> Json:
    """Quantiles of the events that the users' states cover, and of their segments."""
    rows = [store.read(users[start : start + 256])[0] for start in range(0, len(users), 256)]
    result: Json = {}
    for name in ("events", "segments", "pending"):
        values = np.concatenate([columns[name] for columns in rows])
        result[name] = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return result


def measured(
    name: str, command: list[str], requests: arrivals.Requests, args: argparse.Namespace
) -> Json:
    """Rows of rising rates until two in a row are not sustained, and what they show."""
    rows: list[Json] = []
    with running(command) as target:
        warm = asyncio.run(arrivals.send(target, requests, rate=20, seconds=2, seed=10**6))
        assert {status for _, status, _, _ in warm.answers} == {200}, warm.answers[:3]
        for number in range(args.most_rates):
            rate = args.first_rate * GROWTH**number
            outcome = asyncio.run(
                arrivals.send(
                    target,
                    requests,
                    rate=rate,
                    seconds=args.seconds,
                    seed=args.seed + number,
                    connections=args.connections,
                )
            )
            rows.append({"service": name, **row_of(outcome, args.limit_ms)})
            print(json.dumps(rows[-1]), flush=True)
            if [row["sustained"] for row in rows[-2:]] == [False, False]:
                break
    return {"rows": rows, "summary": summary(rows)}


def row_of(outcome: Outcome, limit_ms: float) -> Json:
    """Latencies in milliseconds, by kind of request, with queue and batches."""
    statuses: dict[str, int] = {}
    by_kind: dict[str, list[float]] = {"all": [], "recommend": [], "append": []}
    for kind, status, seconds, _ in outcome.answers:
        statuses[str(status)] = statuses.get(str(status), 0) + 1
        by_kind["all"].append(seconds * 1e3)
        by_kind[kind].append(seconds * 1e3)
    latency = {
        kind: {f"p{p:g}_ms": float(np.percentile(values, p)) for p in PERCENTILES}
        for kind, values in by_kind.items()
        if values
    }
    late = [lateness * 1e3 for *_, lateness in outcome.answers]
    return {
        "rate": outcome.rate,
        "requests": len(outcome.answers),
        "answered_per_s": len(outcome.answers) / outcome.seconds,
        "statuses": statuses,
        "latency": latency,
        "sustained": set(statuses) == {"200"} and latency["all"]["p99_ms"] <= limit_ms,
        "queue": {"mean": float(np.mean(outcome.queue)), "most": max(outcome.queue)},
        "batch_requests": outcome.batches,
        "sender_late_p99_ms": float(np.percentile(late, 99)),
    }


def summary(rows: list[Json]) -> Json:
    """The highest rate below which every rate was sustained, and its latencies."""
    best = None
    for row in rows:
        if not row["sustained"]:
            break
        best = row
    if best is None:
        return {"sustained_rate": None}
    overall = best["latency"]["all"]
    return {
        "sustained_rate": best["rate"],
        "p50_ms": overall["p50_ms"],
        "p99_ms": overall["p99_ms"],
        "all_rates_sustained": all(row["sustained"] for row in rows),
    }


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[Target]:
    """A service in its own process, ready; stopped at the end."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if "http://" not in line:
            raise SystemExit(f"online: the service did not start: {' '.join(command)}")
        address = line.partition("http://")[2].split()[0]
        host, _, port = address.rpartition(":")
        target = Target(host, int(port))
        asyncio.run(arrivals.until_ready(target))
        yield target
    finally:
        child.terminate()
        child.wait(60)


if __name__ == "__main__":
    sys.exit(main())
