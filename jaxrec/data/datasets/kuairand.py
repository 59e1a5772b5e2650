"""KuaiRand: short videos watched in the Kuaishou app over a month of 2022.

C. Gao et al.: KuaiRand, an unbiased sequential recommendation dataset with randomly exposed videos,
CIKM 2022. Licence: CC BY-SA 4.0. Versions Pure (1.4 million events), 1K (12 million; 1,000 users
with thousands of events each) and 27K (323 million) from zenodo.org/records/10439422. `data.path`
is the `data` folder of an unpacked version (its `log_standard_*.csv`, in the order of their names;
random exposures, `log_random_*.csv`, are left out), or files or a glob.

An event is a shown video: `user_id`, `video_id`, `time_ms` (milliseconds). Event types, the
strongest that holds: `long_view`, `click`, `exposure`; `data.event_types` chooses. Item texts are
columns of `video_features_basic_*.csv` beside the logs: videos have types and tags, no titles.

Files, columns, types and numbers of events as in the README of github.com/chongminggao/KuaiRand.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxrec.config import DataConfig
from jaxrec.data.datasets import files
from jaxrec.data.digests import Digest
from jaxrec.data.raw import Chunk, Names, Raw
from jaxrec.types import Json

if TYPE_CHECKING:
    import polars as pl

VERSION = 1
NAMES = Names("user_id", "video_id", "time_ms", "is_click, long_view")
TYPES = dict.fromkeys(("user_id", "video_id", "time_ms", "is_click", "long_view"), "Int64")
TEXTS = ("video_type", "upload_type", "tag")
FORMAT = files.Format(
    types=TYPES, hint="Set data.path to the data folder of KuaiRand-Pure, -1K or -27K"
)


def fingerprint(config: DataConfig, digest: Digest) -> Json:
    """Identifies the content of the source (see `jaxrec.data.datasets.fingerprint`)."""
    logs = _logs(config)
    return {"reader": VERSION, "files": files.fingerprint([*logs, *_videos(logs)], digest)}


def read(config: DataConfig, downloads: Path) -> Raw:
    """Exposures with the strongest reaction; types and tags of videos."""
    logs = _logs(config)
    videos = _videos(logs)

    def chunks() -> Iterator[Chunk]:
        import polars as pl

        kind = (
            pl.when(pl.col("long_view") == 1)
            .then(pl.lit("long_view"))
            .when(pl.col("is_click") == 1)
            .then(pl.lit("click"))
            .otherwise(pl.lit("exposure"))
        )
        for frame, file, row in files.frames(logs, list(TYPES), FORMAT):
            columns = frame.select(user="user_id", item="video_id", time="time_ms", event=kind)
            yield Chunk(columns, str(file), row)

    def texts() -> "Iterator[pl.DataFrame]":
        file_format = files.Format(types={"video_id": "Int64"}, hint=FORMAT.hint)
        file_format = file_format._replace(
            types={"video_id": "Int64", **dict.fromkeys(TEXTS, "String")}
        )
        for frame, _, _ in files.frames(videos, ("video_id", *TEXTS), file_format):
            yield frame.rename({"video_id": "item"})

    return Raw(chunks, NAMES, config.path, "ms", texts if videos else None)


def _logs(config: DataConfig) -> list[Path]:
    return files.find(config.path, "data.path", inside="log_standard_*.csv")


def _videos(logs: list[Path]) -> list[Path]:
    return sorted(logs[0].parent.glob("video_features_basic_*.csv"))
