"""The kernels for Hopper: they lower for CUDA without a GPU; when they are chosen.

What they compute is tested in `test_hopper_values`, where JAX can interpret them.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from jaxrec.layout import SegmentLayout
from jaxrec.nn import attention
from jaxrec.nn.attention import accelerators, fused, hopper
from jaxrec.nn.attention.hopper import arrays, calls
from jaxrec.nn.attention.weights import Weighing
from jaxrec.nn.bias import BUCKET_WIDTH, time_bucket
from tests.nn.kernel_parity import KERNELS, floating, hopper_problem, total
from tests.nn.test_attention import LAYOUTS, attend
from tests.nn.test_fused import inputs_of

NAMES = ("forward", "of_queries", "of_keys", "of_bias")


@pytest.fixture(autouse=True, scope="module")
def kernels_everywhere():
    attention.BACKENDS[KERNELS] = hopper.attend
    yield
    del attention.BACKENDS[KERNELS]


def lowered(layout, p, kind):
    """The gradient's program for CUDA, as text."""
    rest = {name: x for name, x in p.items() if name not in floating(p)}
    cotangent = np.ones(p["q"].shape, np.float32)

    def loss(floats):
        return total(layout, {**floats, **rest}, kind, KERNELS, cotangent)[0]

    return jax.jit(jax.grad(loss)).trace(floating(p)).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("kind", ["softmax", "pointwise"])
@pytest.mark.parametrize(
    ("layout", "width"),
    [(LAYOUTS["request"], 3), (SegmentLayout.stream(132, 4, 3), 64), (LAYOUTS["full"], 128)],
)
def test_they_lower_for_cuda(layout, width, kind):
    text = lowered(layout, hopper_problem(layout, 1, width=width), kind)
    for name in NAMES:
        assert f"segment_attention_{name}" in text
    assert "dot_general" not in text  # every product is in a kernel


def test_users_are_split_over_a_mesh():
    """A program of its own for each device, of its own users."""
    layout = LAYOUTS["request"]
    p = hopper_problem(layout, 1)
    by_user = ("q", "k", "v", "valid", "key_times", "query_times")
    p.update({name: jnp.concatenate([p[name]] * 4) for name in by_user if name in p})
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        text = lowered(layout, p, "pointwise")
    assert "manual_computation" in text or "shard_map" in text
    assert "mosaic_gpu" in text


def on_gpu(capability):
    device = mock.Mock(compute_capability=capability, platform="gpu")
    return mock.patch.object(jax, "local_devices", return_value=[device])


@pytest.mark.parametrize(
    ("layout", "changes", "reason"),
    [
        (SegmentLayout.semi_local(8, 3, 2), {}, "visible pairs do not lie in segments"),
        (LAYOUTS["stream"], {"dtype": jnp.float32}, "numbers are float32, on GPUs bfloat16"),
        (LAYOUTS["stream"], {"width": 256}, "heads are 256 wide, on GPUs at most 128"),
    ],
)
def test_what_has_no_kernel(layout, changes, reason):
    inputs = inputs_of(layout, **{"dtype": jnp.bfloat16, **changes})
    with on_gpu("9.0"):
        assert reason in hopper.unfit(inputs, layout, Weighing("softmax"))


def test_other_gpus_have_no_kernel():
    layout = LAYOUTS["stream"]
    inputs = inputs_of(layout, dtype=jnp.bfloat16)
    with on_gpu("9.0"):
        assert hopper.unfit(inputs, layout, Weighing("pointwise", 3.0)) is None
    for other in ("8.0", "10.0"):
        with on_gpu(other):
            reason = hopper.unfit(inputs, layout, Weighing("softmax"))
        assert reason == f"kernels are for GPUs of compute capability 9.0, this is {other}"


@pytest.mark.parametrize("platform", ["tpu", "gpu", "cuda", "cpu"])
def test_the_platform_chooses_the_kernels(platform, monkeypatch, capsys):
    layout = LAYOUTS["request"]
    p = jax.tree.map(jnp.asarray, hopper_problem(layout, 1))
    monkeypatch.setattr(accelerators, "platform", lambda: platform)
    chosen = []
    for kernels in (fused, hopper):
        monkeypatch.setattr(kernels, "unfit", lambda *_: None)
        monkeypatch.setattr(
            kernels, "attend", functools.partial(lambda k, q, *_: chosen.append(k) or q.q, kernels)
        )
    accelerators.say_once.cache_clear()
    attend(layout, p, "softmax", "fused")
    assert chosen == {"tpu": [fused], "gpu": [hopper], "cuda": [hopper], "cpu": []}[platform]
    assert ("kernels are for TPU and GPU, this is cpu" in capsys.readouterr().out) == (
        platform == "cpu"
    )


def buckets_of(gaps):
    """(by comparison, by logarithm, how far the logarithm is from the next whole bucket)."""
    gaps = np.asarray(gaps, np.int64)
    compared = np.searchsorted(arrays.bucket_starts(), gaps.astype(np.float32), side="right") - 1
    low = jnp.full(len(gaps), -(2**31), jnp.int32)
    logarithm = np.asarray(time_bucket(low, jnp.asarray(gaps - 2**31, jnp.int32)))
    exact = np.log(np.maximum(gaps, 1).astype(np.float32).astype(np.float64)) / BUCKET_WIDTH
    return compared, logarithm, np.abs(exact - np.round(exact))


@settings(max_examples=200)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
@example([0, 1, 2, 2**31, 2**32 - 1])
def test_buckets_are_those_of_the_logarithm(gaps):
    compared, logarithm, distance = buckets_of(gaps)
    # float32 cannot tell on which side of a whole number the logarithm is
    near = distance < 1e-5
    np.testing.assert_array_equal(compared[~near], logarithm[~near])
    assert np.abs(compared - logarithm).max() <= 1


def test_the_first_seconds_of_buckets():
    first = np.ceil(arrays.bucket_starts()[1:-1].astype(np.float64)).astype(np.int64)
    around = np.concatenate([first - 1, first, first + 1])
    compared, logarithm, distance = buckets_of(around)
    np.testing.assert_array_equal(compared[distance > 1e-5], logarithm[distance > 1e-5])
    assert (distance > 1e-5).sum() > len(around) // 2


@pytest.mark.parametrize("times", [False, True])
@pytest.mark.parametrize("width", [64, 128])
def test_shared_memory_is_under_the_limit_of_the_chip(width, times):
    need = calls.shared_memory(width, times=times)
    assert tuple(need) == NAMES
    print(
        f"head width {width}{', times' if times else ''}:",
        {name: f"{size / 2**10:.1f} KiB" for name, size in need.items()},
    )
    assert max(need.values()) <= calls.SHARED_MEMORY // 2  # two blocks of threads fit a processor
