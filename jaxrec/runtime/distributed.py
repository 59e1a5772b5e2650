"""The processes of one run: how they start, share work and agree.

A run on several machines is one process per machine (or per accelerator), all started with the
same command. JAX's coordination service, in process 0, watches them: when a process stops answering
for `timeout` seconds the others end; when its connection breaks they end at their next collective.
"""

import os
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.errors import ConfigError, PeerError
from jaxrec.runtime import rendezvous
from jaxrec.types import Tree

COORDINATOR, PROCESSES, PROCESS = "JAXREC_COORDINATOR", "JAXREC_PROCESSES", "JAXREC_PROCESS"
_MESSAGE = 2048  # bytes of an error message that process 0 sends to the others


class _Cluster(TypedDict, total=False):
    """Arguments of `jax.distributed.initialize` that `auto` leaves out."""

    coordinator_address: str
    coordinator_bind_address: str | None
    num_processes: int | None
    process_id: int | None


class Place(NamedTuple):
    """This process's position in the run.

    coordinator: `host:port` of process 0, or `auto`: JAX asks the cluster, and both numbers are
    None. processes: how many there are. process: number of this one.
    """

    coordinator: str
    processes: int | None
    process: int | None


def place(
    coordinator: str = "",
    processes: int | None = None,
    process: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
    """The place of this process in the run; None for a run of one process.

    coordinator: `host:port` of process 0, with `processes` and `process`; `auto`: JAX asks the
    cluster (Slurm, Open MPI, Kubernetes, Cloud TPU); `none`: one process, whatever the environment
    says; empty: $JAXREC_COORDINATOR, $JAXREC_PROCESSES and $JAXREC_PROCESS, else `auto` where Slurm
    started several tasks or a TPU pod names several workers.
    Raises ConfigError for missing and impossible values.
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
    if not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator={coordinator!r}: the port must be 1 to 65535")
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
    """Joins the run. Call it before anything touches a device.

    timeout: seconds to wait for the other processes, and until a silent one counts as dead. Raises
    ConfigError when they do not come together.
    """
    if where is None:
        return
    coordinator, processes, process = where
    arguments: _Cluster = {}
    if processes is not None and process is not None:
        rendezvous.meet(coordinator, processes, process, timeout)
        arguments = {
            "coordinator_bind_address": None if process else rendezvous.bind_address(coordinator),
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
        jax.devices()  # exchanges the processes' devices here and not later
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--coordinator={coordinator}: the processes did not come together within {timeout} s: "
            f"{str(error).splitlines()[0]}"
        ) from error


def leader() -> bool:
    """Whether this process writes logs and files."""
    return jax.process_index() == 0


def leader_first(work: Callable[[], object]) -> None:
    """Runs `work()` on process 0 while the others wait; they raise PeerError when it fails."""
    if jax.process_count() == 1:
        work()
        return
    message = np.zeros(_MESSAGE, np.uint8)
    failure: BaseException | None = None
    if leader():
        try:
            work()
        except BaseException as error:
            failure = error
            text = (f"{error}" or type(error).__name__).encode()[:_MESSAGE]
            message[: len(text)] = np.frombuffer(text, np.uint8)
    message = np.asarray(multihost_utils.broadcast_one_to_all(message))
    if failure is not None:
        raise failure
    if message[0]:
        reason = bytes(message).rstrip(b"\0").decode(errors="replace")
        raise PeerError(f"process 0 stopped: {reason}")


def any_process(flag: bool) -> bool:
    """Whether `flag` is true on any process. Every process must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def gather_rows(tree: Tree) -> Tree:
    """NumPy arrays [B, ...] of every process's rows, concatenated in process order."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def from_leader(tree: Tree) -> Tree:
    """Process 0's NumPy arrays on every process; all pass arrays of the same shapes."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def spread(tree: Tree, shardings: Tree) -> Tree:
    """Global arrays with `shardings`, from NumPy arrays that every process has whole."""

    def place(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, tree, shardings)


class Vote:
    """Whether the flag of any process is set, known to all of them at the same step.

    The answer comes one call late, so that no process waits for the step that is running.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._devices = len(mesh.local_devices)
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._pending: jax.Array | None = None

    def __call__(self, flag: bool) -> bool:
        """The result of the previous call; starts the vote on `flag`."""
        flags = np.full(self._devices, flag)
        votes = jax.make_array_from_process_local_data(self._sharding, flags)
        previous, self._pending = self._pending, self._any(votes)
        return previous is not None and bool(previous)


def give_up(error: BaseException, program: str) -> NoReturn:
    """Ends this process of a run at once; its peers notice the broken connection.

    A normal exit would wait for the others, which may be waiting for this one.
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
