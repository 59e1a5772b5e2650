"""Little model folders in the Hugging Face format."""

import dataclasses

import jax
import pytest

from jaxrec.config import ModelConfig
from jaxrec.interop import huggingface
from jaxrec.nn.text_model import TextModel
from tests.items.text_items import USER


def tower_folder(folder, width=6):
    """A tiny language model with a tokenizer of two words, as a Hugging Face folder."""
    pytest.importorskip("safetensors")
    tokenizers = pytest.importorskip("tokenizers")
    config = ModelConfig(
        backbone="llama", width=width, heads=1, layers=2, llama=dataclasses.replace(USER)
    )
    model = TextModel(config, 8, context=16)
    huggingface.save(folder, model, model.init(jax.random.key(0)))
    words = tokenizers.models.WordLevel({"?": 0, "title": 1, ":": 2, "a": 3, "b": 4}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)
