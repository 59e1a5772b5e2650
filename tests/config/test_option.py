"""What stands beside every field: description, choices, bounds."""

import dataclasses

import pytest

from jaxrec.config import BOUNDS, CHOICES, Config
from jaxrec.config.option import Option, group_of, option, options
from tests.config.keys import DEFAULTS

OPTIONS = dict(options(Config))


def test_every_key_has_an_option():
    assert list(OPTIONS) == list(DEFAULTS)
    assert len(OPTIONS) >= 145


def test_no_key_without_a_description():
    """A description is one plain sentence, long enough to say something."""
    silent = [key for key, known in OPTIONS.items() if len(known.description.split()) < 2]
    assert silent == []
    for key, known in OPTIONS.items():
        assert "\n" not in known.description, key
        assert known.description.endswith("."), key


def test_descriptions_say_what_the_key_adds():
    """A text that stands twice was copied, and fits one of the two keys at most."""
    alike = {
        "model.sasrec.time_bias",
        "model.llama.time_bias",
        "model.llama.lora_alpha",
        "model.texts.lora_alpha",
    }
    texts = [known.description for key, known in OPTIONS.items() if key not in alike]
    assert len(set(texts)) == len(texts)


def test_every_group_has_a_summary():
    def groups(kind):
        yield kind
        for field in dataclasses.fields(kind):
            inner = group_of(field)
            if inner is not None:
                yield from groups(inner)

    for kind in groups(Config):
        assert not kind.__doc__.startswith(f"{kind.__name__}("), kind  # the dataclass's own text
        assert kind.__doc__.splitlines()[0].endswith("."), kind


def test_tables_are_read_from_the_fields():
    assert CHOICES["model.backbone"] == OPTIONS["model.backbone"].choices
    assert BOUNDS["data.synthetic.returns"] == (0, 1)
    assert BOUNDS["train.steps"] == (1, None)


@dataclasses.dataclass
class Group:
    """A group."""

    width: int = option(8, "Width.", low=1)
    kind: str = option("a", "Kind.", choices=("a", ""))
    plain: float = 0.5


def test_a_field_is_a_plain_dataclass_field():
    assert Group() == Group(8, "a", 0.5)
    assert dataclasses.asdict(Group(width=3)) == {"width": 3, "kind": "a", "plain": 0.5}
    assert dataclasses.replace(Group(), kind="").kind == ""
    assert dict(options(Group, "g.")) == {
        "g.width": Option("Width.", low=1),
        "g.kind": Option("Kind.", choices=("a", "")),
        "g.plain": Option(""),
    }


@pytest.mark.parametrize(
    ("known", "allowed"),
    [
        (Option("x"), ""),
        (Option("x", low=0), ">= 0"),
        (Option("x", low=0, high=0.99), "0 to 0.99"),
        (Option("x", choices=("a", "b", "")), "a | b | ''"),
    ],
)
def test_what_is_allowed_is_said(known, allowed):
    assert known.allowed == allowed
