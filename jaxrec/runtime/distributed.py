"""The processes of one run: how they find each other, what the first does for all, how they agree.

A run on several machines is one process per machine (or per accelerator), all started with the
same command. JAX's coordination service, held by process 0, watches over them: a process that
stops answering for `timeout` seconds ends the others; one whose connection breaks ends them at
once, at their next collective.
"""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.errors import ConfigError, PeerError

COORDINATOR, PROCESSES, PROCESS = "JAXREC_COORDINATOR", "JAXREC_PROCESSES", "JAXREC_PROCESS"
_MESSAGE = 2048  # bytes of an error that process 0 tells the others


class Place(NamedTuple):
    """coordinator: `host:port` or `auto`; then both numbers are None (the cluster knows)."""

    coordinator: str
    processes: int | None
    process: int | None


def place(
    coordinator: str = "",
    processes: int | None = None,
    process: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
    """Where this process stands among those of the run; None: it is the only one.

    coordinator: `host:port` of process 0, with the number of processes and this one's; `auto`:
    JAX asks the cluster (Slurm, Open MPI, Kubernetes, Cloud TPU); `none`: alone whatever the
    environment says; empty: $JAXREC_COORDINATOR, $JAXREC_PROCESSES and $JAXREC_PROCESS, else
    `auto` where Slurm started several tasks or a TPU pod names several workers.
    Raises ConfigError for what is missing or impossible.
    """
    coordinator = coordinator or environment.get(COORDINATOR, "")
    if not coordinator:
        several = int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1
        several |= "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        coordinator = "auto" if several else "none"
    if coordinator == "none":
        return None
    if coordinator == "auto":
        return Place("auto", None, None)
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--coordinator={coordinator!r}: allowed are HOST:PORT, auto, none")
    processes = _number("--processes", processes, PROCESSES, environment)
    process = _number("--process", process, PROCESS, environment)
    if not 0 <= process < processes:
        raise ConfigError(f"--process={process}: allowed are 0 to {processes - 1} (--processes)")
    return Place(coordinator, processes, process)


def _number(flag: str, value: int | None, variable: str, environment: Mapping[str, str]) -> int:
    if value is not None:
        return value
    text = environment.get(variable, "")
    if not text.isdigit():
        raise ConfigError(f"{flag} (or ${variable}={text!r}): a number is needed with HOST:PORT")
    return int(text)


def start(where: Place | None, timeout: int = 100) -> None:
    """Joins the run; to be called before anything touches a device.

    timeout: seconds to wait for the other processes, and after which a silent one counts as
    dead. Raises ConfigError when they do not come together.
    """
    if where is None:
        return
    coordinator, processes, process = where
    arguments: dict[str, Any] = {}
    if coordinator != "auto":
        arguments = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
        }
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
        jax.devices()  # the processes tell each other their devices, here and not later
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--coordinator={coordinator}: the processes did not come together within {timeout} s: "
            f"{str(error).splitlines()[0]}"
        ) from error


def leader() -> bool:
    """Whether this process writes logs and files."""
    return jax.process_index() == 0


def leader_first(work: Callable[[], Any]) -> None:
    """`work()` on process 0 while the others wait; when it fails they raise PeerError."""
    if jax.process_count() == 1:
        work()
        return
    told = np.zeros(_MESSAGE, np.uint8)
    failure: BaseException | None = None
    if leader():
        try:
            work()
        except BaseException as error:
            failure = error
            text = (f"{error}" or type(error).__name__).encode()[:_MESSAGE]
            told[: len(text)] = np.frombuffer(text, np.uint8)
    told = np.asarray(multihost_utils.broadcast_one_to_all(told))
    if failure is not None:
        raise failure
    if told[0]:
        reason = bytes(told).rstrip(b"\0").decode(errors="replace")
        raise PeerError(f"process 0 stopped: {reason}")


def any_process(mine: bool) -> bool:
    """Whether any process says so; every process must ask."""
    if jax.process_count() == 1:
        return mine
    return bool(multihost_utils.process_allgather(np.asarray(mine)).any())


def gather_rows(tree: Any) -> Any:
    """NumPy arrays whose first axes hold each process's rows, put together in process order."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def from_leader(tree: Any) -> Any:
    """NumPy arrays as process 0 has them; the others give arrays of the same shapes."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def spread(tree: Any, shardings: Any) -> Any:
    """NumPy arrays that every process has whole, as arrays that lie as `shardings` says."""

    def one(x: Any, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(one, tree, shardings)


class Vote:
    """Whether any process asks for something, known to all at the same step.

    The answer comes one call late, so that nobody waits for the step that is running.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._devices = len(mesh.local_devices)
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._asked: Any = None

    def __call__(self, mine: bool) -> bool:
        flags = np.full(self._devices, mine)
        asked = self._any(jax.make_array_from_process_local_data(self._sharding, flags))
        before, self._asked = self._asked, asked
        return before is not None and bool(before)


def give_up(error: BaseException, program: str) -> NoReturn:
    """Ends this process of several at once; its peers notice the broken connection.

    A normal exit would wait for the others, who may wait for this one.
    """
    index, count = jax.process_index(), jax.process_count()
    text = f"{error}"
    if isinstance(error, jax.errors.JaxRuntimeError):
        text = (
            "lost another process of the run (killed, out of memory or preempted? see its log). "
            "The last checkpoint is intact: start the same command again on every machine. "
            f"{text.splitlines()[0][:300]}"
        )
    print(f"{program}: error in process {index} of {count}: {text}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(2)
