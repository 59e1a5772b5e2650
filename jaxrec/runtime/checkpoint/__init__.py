"""Checkpoints of a run: committed atomically, verified, restored onto any mesh.

`<folder>/<step>/` is one checkpoint. Orbax writes its arrays into `<step>.new`, `record.json` is
added and the folder renamed, so a killed process leaves either a whole checkpoint or a folder that
nothing reads. Orbax stores no checksum of its payload (a flipped bit would be a silently wrong
weight), so the record holds the BLAKE2 digest of every file, compared before anything is read, and
of every leaf, compared after.

A checkpoint holds named trees (`params`, `opt_state`, ...), each flattened to path -> array: what
is stored does not depend on the Python types of an optimizer's state.
"""

from jaxrec.runtime.checkpoint.integrity import best_step, steps
from jaxrec.runtime.checkpoint.reading import Restored, load_params, restore, restore_latest
from jaxrec.runtime.checkpoint.saving import clean, retain, save

__all__ = [
    "Restored",
    "best_step",
    "clean",
    "load_params",
    "restore",
    "restore_latest",
    "retain",
    "save",
    "steps",
]
