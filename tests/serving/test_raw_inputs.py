"""Raw ids and events that a caller gives."""

import pytest

from jaxrec.errors import DataError
from tests.serving import standin
from tests.serving.standin import ORIGIN


@pytest.mark.parametrize("text", [False, True])
def test_integers_and_texts_are_not_mixed(tmp_path, text):
    # NumPy makes texts of a list of both, and integers of booleans
    rec = standin.make(text=text)
    users, items = (["a", "b"], ["item-1000"] * 2) if text else ([1, 2], [1000] * 2)
    times = [ORIGIN] * 2
    mixed, mixture = [1000, "item-1000"], "integers and texts are mixed"
    with rec.create_store(tmp_path / "s", num_shards=2) as store:
        with pytest.raises(DataError, match=f"append: user_ids: {mixture}"):
            rec.append(store, [1, "a"], items, times)
        with pytest.raises(DataError, match=f"append: item_ids: {mixture}"):
            rec.append(store, users, mixed, times)
        with pytest.raises(DataError, match=r"recommend: user id .*training data's user ids are"):
            rec.recommend(store, [1, "a"])
        for lists in (mixed, tuple(mixed), set(mixed), [mixed, mixed]):
            for name in ("exclude", "candidates"):
                with pytest.raises(DataError, match=f"{name}: {mixture}"):
                    rec.recommend(store, users, **{name: lists})
        for odd in (True, b"a", 1.5, None):
            with pytest.raises(DataError, match=r"user_ids"):
                rec.append(store, [users[0], odd], items, times)
        assert sum(shard.users for shard in store.stat()) == 0
