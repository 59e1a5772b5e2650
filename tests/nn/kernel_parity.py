"""Kernels against masked attention: values and all gradients.

A module of tests puts its kernels into `attention.BACKENDS` under the name `KERNELS`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.nn.test_attention import attend, problem
from tests.reference import layout as places

KERNELS = "kernels"


def total(layout, p, kind, backend, cotangent):
    """A number that depends on the output where positions exist."""
    exists = p["valid"][:, layout.num_cached :, None, None]
    out = attend(layout, p, kind, backend)
    return jnp.sum(jnp.where(exists, out.astype(jnp.float32) * cotangent, 0)), out


def floating(p):
    return {name: x for name, x in p.items() if jnp.issubdtype(x.dtype, jnp.inexact)}


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def with_gradients(layout, p, kind, backend, cotangent):
    """(output, gradients by name)."""
    rest = {name: x for name, x in p.items() if name not in floating(p)}
    by = jax.grad(lambda f: total(layout, {**f, **rest}, kind, backend, cotangent), has_aux=True)
    gradients, out = by(floating(p))
    return out, gradients


def at_most_one_key(layout, p):
    """True where no position has more than one key: the weights of softmax are then constants."""
    visible = places.visible(layout.segments, layout.cached, layout.max_segments)
    keys = (visible & p["valid"][:, None]).sum(-1)
    return keys[p["valid"][:, layout.num_cached :]].max(initial=0) <= 1


def compare(layout, p, kind, tolerance):
    """Kernels against masked attention; differences relative to the largest number."""
    cotangent = np.random.default_rng(9).standard_normal(p["q"].shape).astype(np.float32)
    truth, truths = with_gradients(layout, p, kind, "dense", cotangent)
    found, founds = with_gradients(layout, p, kind, KERNELS, cotangent)
    exists = p["valid"][:, layout.num_cached :]
    assert np.isfinite(np.asarray(found, np.float32)).all()
    if kind == "softmax" and at_most_one_key(layout, p):
        # nothing but v has an effect; masked attention gives the others gradients that are rounding
        assert not any(np.asarray(founds[name]).any() for name in founds if name != "v")
        truths = {"v": truths["v"]}
    pairs = {name: (founds[name], truths[name]) for name in truths}
    for name, pair in {"out": (found[exists], truth[exists]), **pairs}.items():
        mine, wanted = (np.asarray(x, np.float32) for x in pair)
        largest = np.abs(wanted).max(initial=0)
        assert np.abs(mine - wanted).max(initial=0) <= tolerance * largest, name
    return founds


def hopper_problem(layout, seed, *, with_bias=True, with_times=True, **sizes):
    """What the kernels for Hopper compute: bfloat16."""
    p = problem(layout, seed, with_bias, **sizes)
    if not with_times:
        p.pop("time", None)
    return p | {name: jnp.asarray(p[name], jnp.bfloat16) for name in "qkv"}
