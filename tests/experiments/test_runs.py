"""Runs are trained once, shared between experiments and found again after a stop."""

import numpy as np
import pytest

from jaxrec.errors import ConfigError, WorkdirError
from jaxrec.experiments import quality, runs
from jaxrec.experiments.runs import Lab, MissingRun, name_of, with_values
from jaxrec.runtime import workdir
from tests.experiments import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of one seed of the tiny base."""
    return tmp_path_factory.mktemp("runs")


def lab(folder, said=None, **options):
    return Lab(
        tiny.config(seeds=(0,)), folder, (said if said is not None else []).append, **options
    )


def test_names_follow_what_decides_parameters():
    base = runs.plain(tiny.config())
    name = name_of(base)
    for same in (
        {"train__log_every": 7},
        {"data__cache_dir": "/elsewhere"},
        {"eval__batch_size": 3},
        {"data__workers": 2},
    ):
        assert name_of(with_values(base, **same)) == name
    for other in (
        {"seed": 1},
        {"train__steps": 5},
        {"train__eval_every": 2},
        {"train__init_from": "/somewhere/a"},
        {"layout__tokens": 3},
        {"data__synthetic": tiny.config().experiments.probe.data},
    ):
        assert name_of(with_values(base, **other)) != name
    # a run that it begins with may lie elsewhere
    places = [with_values(base, train__init_from=f"{place}/a") for place in ("/one", "two")]
    assert name_of(places[0]) == name_of(places[1])
    assert base == runs.plain(tiny.config())  # copies alone were changed
    with pytest.raises(ConfigError, match=r"layout\.tokens=0"):
        with_values(base, layout__tokens=0)


@pytest.mark.parametrize("made", [quality.full_of, quality.recent_of])
def test_runs_without_tokens_are_one_for_all_tokens(made):
    base = runs.plain(tiny.config())
    changes = [{"layout__tokens": count} for count in (1, 2, 4)]
    changes += [{"model__token_input": "parts"}, {"model__token_distance": True}]
    assert len({name_of(made(with_values(base, **change))) for change in changes}) == 1


def test_a_run_is_trained_once_and_its_ranks_are_kept(folder):
    said = []
    first = lab(folder, said)
    ranks = first.ranks(first.base, "compressed")
    assert [line.split()[0] for line in said] == ["training", "evaluating"]
    assert "2 x 6 + 2 tokens, seed 0, 4 steps" in said[0]
    assert (folder / name_of(first.base) / runs.DONE).is_file()
    # the users that were asked for, each with its two last events
    assert len(np.unique(ranks.user)) == 10
    assert len(ranks.rank) == 20

    said.clear()
    again = lab(folder, said, train=False)
    np.testing.assert_array_equal(again.ranks(again.base, "compressed").rank, ranks.rank)
    assert not said

    fresh = lab(folder, said, train=False, fresh=True)
    np.testing.assert_array_equal(fresh.ranks(fresh.base, "compressed").rank, ranks.rank)
    assert [line.split()[0] for line in said] == ["evaluating"]

    # the same targets by a masked forward over as many segments, to the last rank
    served = again.ranks(again.base, "served 2")
    np.testing.assert_array_equal(served.position, ranks.position)
    np.testing.assert_array_equal(served.rank, ranks.rank)


def test_a_stopped_run_goes_on(folder, capfd):
    first = lab(folder)
    first.session(first.base)
    (folder / name_of(first.base) / runs.DONE).unlink()
    with pytest.raises(MissingRun, match=r"no finished run of this configuration \(synthetic"):
        lab(folder, train=False).session(first.base)
    capfd.readouterr()
    said = []
    second = lab(folder, said)
    second.session(second.base)
    assert said[0].startswith("training")
    assert "continuing from step 4" in capfd.readouterr().err
    assert (folder / name_of(first.base) / runs.DONE).is_file()


def test_a_missing_run_is_not_trained_where_it_may_not(folder):
    only = lab(folder, train=False)
    with pytest.raises(MissingRun, match=r"seed 5, 4 steps"):
        only.ranks(with_values(only.base, seed=5), "compressed")


def test_a_run_that_another_process_trains_is_refused_in_one_line(folder):
    some = lab(folder)
    run = with_values(some.base, seed=7)
    with workdir.lock(some.place(run)), pytest.raises(workdir.InUse) as refused:
        some.session(run)
    text = str(refused.value)
    assert text.startswith(f"run {name_of(run)} (synthetic, compressed, 2 x 6 + 2 tokens, seed 7")
    assert "is being trained by another process" in text
    assert "--only" in text
    assert "\n" not in text
    assert not (some.place(run) / runs.DONE).exists()


def test_a_folder_of_other_data_is_refused(folder):
    first = lab(folder)
    first.session(first.base)
    place = folder / name_of(first.base) / "dataset.json"
    text = place.read_text()
    place.write_text(text.replace('"data": "', '"data": "0'))
    try:
        with pytest.raises(WorkdirError, match="another dataset"):
            lab(folder).session(first.base)
    finally:
        place.write_text(text)


def test_users_need_targets_and_events(folder):
    some = lab(folder)
    prepared = some.session(some.base).prepared
    users = some.users(prepared)
    assert len(users) == 10
    assert (prepared.lengths[users] >= 20).all()
    np.testing.assert_array_equal(lab(folder).users(prepared), users)
    every = Lab(tiny.config(users=0, min_events=0), folder)
    assert set(users) < set(every.users(prepared))
    with pytest.raises(ConfigError, match=r"experiments\.min_events=1000: no user"):
        Lab(tiny.config(min_events=1000), folder).users(prepared)
