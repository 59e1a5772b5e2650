"""Records hidden states of transformers' LlamaModel for `tests/golden/llama/*.npz`.

    python tests/interop/make_llama_golden.py

Needs torch and transformers; the recorded files are what the tests read.
"""

import inspect
import json
import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "llama"
BASE = {
    "vocab_size": 41,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
SCALED = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES = {
    "plain": BASE | {"rope_theta": 10000.0},
    "scaled": BASE
    | {
        "num_key_value_heads": 1,
        "head_dim": 6,
        "tie_word_embeddings": True,
        "rope_theta": 100.0,
        "rope_scaling": SCALED,
    },
}


def reference(values, seed=0):
    """(transformers' model with weights of trained size, its config as a dict)."""
    import torch
    import transformers

    values = dict(values)
    theta, scaling = values.pop("rope_theta"), values.pop("rope_scaling", None)
    rope = {"rope_type": "default", "rope_theta": theta} | (scaling or {})
    config = transformers.LlamaConfig(
        **values, rope_parameters=rope, attn_implementation="eager", pad_token_id=0
    )
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def record(values, seed=0):
    """name -> array: weights under `weight/`, inputs, outputs of every way to run the model."""
    import torch
    import transformers

    model = reference(values, seed)
    rng = np.random.default_rng(seed)
    words = rng.integers(1, values["vocab_size"], (3, 12))
    mask = np.ones((3, 12), np.int64)
    mask[1, 9:], mask[2, 5:] = 0, 0

    def run(ids, **more):
        with torch.no_grad():
            return model.model(input_ids=torch.as_tensor(ids), **more)

    whole = run(words, attention_mask=torch.as_tensor(mask))
    left = np.flip(mask, 1).copy()  # the same number of words, padding in front
    place = np.maximum(left.cumsum(1) - 1, 0)
    padded = run(words, attention_mask=torch.as_tensor(left), position_ids=torch.as_tensor(place))
    first = run(words[:1, :7], use_cache=True)
    # transformers 5.24 calls it `cache`
    names = inspect.signature(transformers.LlamaModel.forward).parameters
    name = "cache" if "cache" in names else "past_key_values"
    cache = getattr(first, name)
    rest = run(words[:1, 7:], **{name: cache}, use_cache=True)
    key, value = (
        np.stack([np.asarray(getattr(layer, name)) for layer in cache.layers])
        for name in ("keys", "values")
    )
    with torch.no_grad():
        logits = model.lm_head(whole.last_hidden_state)
    weights = {f"weight/{n}": np.asarray(w) for n, w in model.state_dict().items()}
    if values["tie_word_embeddings"]:
        del weights["weight/lm_head.weight"]
    return weights | {
        "config": np.asarray(json.dumps({"model_type": "llama", "hidden_act": "silu"} | values)),
        "words": words,
        "mask": mask,
        "hidden": np.asarray(whole.last_hidden_state),
        "logits": np.asarray(logits),
        "left_mask": left,
        "left_hidden": np.asarray(padded.last_hidden_state),
        "rest_hidden": np.asarray(rest.last_hidden_state),
        "cache_k": key,
        "cache_v": value,
    }


if __name__ == "__main__":
    for name, case in CASES.items():
        np.savez_compressed(GOLDEN / f"{name}.npz", **record(case))
