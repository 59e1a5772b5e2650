"""What `experiments.baselines` trains beside recent, compressed and full history."""

import pytest

from jaxrec.errors import ConfigError
from jaxrec.experiments import baselines, settings
from jaxrec.experiments.runs import with_values
from jaxrec.layout.segments import SegmentLayout
from tests.experiments import tiny


def test_names_are_those_that_the_settings_allow():
    assert tuple(baselines.BASELINES) == settings.BASELINES
    config = tiny.config(seeds=(0,))
    config.experiments.baselines = ("mean-pooled", "mean")
    with pytest.raises(ConfigError, match=r"'mean' is none; allowed are mean-pooled, constant"):
        settings.validate(config)
    for name, baseline in baselines.BASELINES.items():
        assert baseline.sentence.startswith(f"`{name}` ")


@pytest.mark.parametrize(
    ("size", "tokens", "segments"), [(12, 4, 4), (16, 4, 4), (6, 1, 3), (4, 4, 2)]
)
def test_parts_have_as_many_tokens_and_events_as_compressed_history(size, tokens, segments):
    base = with_values(
        tiny.config(seeds=(0,)),
        layout__segment_size=size,
        layout__tokens=tokens,
        layout__max_segments=segments,
        layout__recent_min=2,
        model__token_input="pooled",
    )
    made = baselines.chosen(("mean-pooled-parts",), base)["mean-pooled-parts"]
    assert made.model.token_input == "mean"
    assert made.layout.tokens == 1
    assert made.layout.history == base.layout.history
    assert made.layout.recent == base.layout.recent
    parts, whole = (SegmentLayout.from_config(config.layout) for config in (made, base))
    assert parts.num_tokens == whole.num_tokens == segments * tokens
    assert parts.length == whole.length


@pytest.mark.parametrize(("name", "kind"), [("mean-pooled", "mean"), ("constant", "constant")])
def test_one_token_that_reads_nothing(name, kind):
    base = with_values(tiny.config(seeds=(0,)), model__token_input="pooled")
    made = baselines.chosen((name,), base)[name]
    assert made == with_values(base, layout__tokens=1, model__token_input=kind)


def test_parts_must_be_equal():
    base = with_values(tiny.config(seeds=(0,)), layout__segment_size=10, layout__tokens=4)
    with pytest.raises(ConfigError, match=r"=10 must be a multiple of layout\.tokens=4"):
        baselines.chosen(("mean-pooled-parts",), base)
