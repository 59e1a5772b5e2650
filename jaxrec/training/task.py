"""What a run trains: the values that the loop, the dry run and benchmarks share."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax

from jaxrec.config import digest
from jaxrec.data.prepared import Prepared
from jaxrec.runtime import workdir
from jaxrec.training.text_step import TextItems
from jaxrec.training.update import DrawNegatives, Loss
from jaxrec.types import Params, Tree


@dataclasses.dataclass(frozen=True)
class Task:
    """A model as training sees it.

    init: parameters from a key. loss: `Model.loss`. negatives: `Model.negatives`, needed by
    train.table_update other than adamw. sampling: arrays by which every step draws negatives:
    [V + 1] training events per item, or for row updates a `Sampler` (None: uniform draws). texts:
    given where an item tower is trained; its parameters are among those of `init`.
    """

    init: Callable[[jax.Array], Params]
    loss: Loss
    negatives: DrawNegatives | None = None
    sampling: Tree = None
    texts: TextItems | None = None


@dataclasses.dataclass(frozen=True)
class DataIdentity:
    """What data a run is trained on; a folder of other data is refused.

    digests: of data and vocabulary. ancestors: data that this one was appended to, oldest first,
    which a run may continue from (train.continue_on_new_data). on_claim: called on the leading
    process once the folder is known to be this run's, to write what is stored next to its
    checkpoints.
    """

    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ancestors: Sequence[workdir.Ancestor] = ()
    on_claim: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, prepared: Prepared, on_claim: Callable[[], None] = lambda: None) -> "DataIdentity":
        """The identity of prepared data."""

        def digests(data_digest: str, items: int) -> dict[str, str]:
            # an ancestor's vocabulary is the beginning of this one: items keep their ids
            known = prepared.vocabulary.ids[:items]
            return {"data": data_digest, "vocabulary": digest([str(raw) for raw in known])}

        ancestors = [
            workdir.Ancestor(digests(ancestor.digest, ancestor.items), ancestor.items)
            for ancestor in prepared.ancestors
        ]
        return cls(digests(prepared.digest, prepared.num_items), ancestors, on_claim)
