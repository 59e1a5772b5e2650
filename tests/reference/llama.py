"""A Llama decoder layer in NumPy, float64, position by position (arXiv 2302.13971, 2104.09864)."""

import math

import numpy as np

from tests.reference.attention import attend, silu


def rms_norm(x, scale, eps):
    x = np.float64(x)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def rate(i, width, llama):
    """Radians per position of pair i, from the words of the Llama 3.1 release."""
    value = llama.rope_theta ** (-2 * i / width)
    if llama.rope_scaling == "linear":
        return value / llama.rope_factor
    if llama.rope_scaling == "llama3":
        wavelength = 2 * math.pi / value
        if wavelength > llama.rope_length / llama.rope_low:
            return value / llama.rope_factor
        if wavelength >= llama.rope_length / llama.rope_high:
            smooth = llama.rope_length / wavelength - llama.rope_low
            smooth /= llama.rope_high - llama.rope_low
            return (1 - smooth) * value / llama.rope_factor + smooth * value
    return value


def rotate(x, positions, llama):
    """x [B, T, N, H]: pair (i, i + H / 2) turned by the angle of its position, as a complex
    number.
    """
    half = x.shape[-1] // 2
    z = x[..., :half] + 1j * x[..., half:]
    for t, position in enumerate(positions):
        for i in range(half):
            z[:, t, :, i] *= np.exp(1j * position * rate(i, x.shape[-1], llama))
    return np.concatenate([z.real, z.imag], -1)


def layer(x, w, visible, valid, *, config, positions, bias=None):
    """x [B, T, D] -> [B, T, D]. positions: [T] by which keys and queries are turned."""
    llama, heads, kv_heads = config.llama, config.heads, config.llama.kv_heads or config.heads
    width = llama.head_width or config.width // heads

    def project(y, name):
        return y @ w[name]["kernel"]

    y = rms_norm(x, w["attention_norm"]["scale"], llama.norm_eps)
    q, k, v = (
        project(y, name).reshape(*x.shape[:2], count, width)
        for name, count in (("query", heads), ("key", kv_heads), ("value", kv_heads))
    )
    q, k = rotate(q, positions, llama), rotate(k, positions, llama)
    owner = [n // (heads // kv_heads) for n in range(heads)]
    mixed = attend(
        q,
        k[:, :, owner],
        v[:, :, owner],
        visible,
        valid,
        kind="softmax",
        scale=width**-0.5,
        bias=bias,
    )
    x = x + project(mixed.reshape(*x.shape[:2], -1), "out")
    y = rms_norm(x, w["ffn_norm"]["scale"], llama.norm_eps)
    return x + project(silu(project(y, "gate")) * project(y, "up"), "down")
