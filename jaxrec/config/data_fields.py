"""Keys of the data: what is read, filtered and split, and how histories are cut to a layout."""

import dataclasses

from jaxrec.config.option import Group, option

DATASETS = (
    "completejourney",
    "movielens",
    "merrec",
    "ebnerd",
    "amazon_reviews",
    "kuairand",
    "yambda",
    "table",
    "synthetic",
    "planted",
)


@dataclasses.dataclass
class SyntheticConfig(Group):
    """Generated lifelong histories with planted structure (data.dataset=synthetic)."""

    users: int = option(2000, "Number of users.", low=1)
    items: int = option(2000, "Number of items.", low=2)
    events: int = option(600, "Mean number of events per user.", low=4)
    interests: int = option(40, "Number of item groups that a user can like.", low=1)
    returns: float = option(
        0.5, "Probability that a late event returns to an early preference.", low=0, high=1
    )
    gap: int = option(300, "Events between an early preference and its return.", low=0)
    favourites: int = option(
        0,
        "Items of a user that return, at most `interests`; 0: one for 12 events of gap, at most 8.",
        low=0,
    )


@dataclasses.dataclass
class PlantedConfig(Group):
    """Returns of old items, planted into the histories of a table (data.dataset=planted)."""

    durable: float = option(
        0.1, "Probability that an item is durable: only such items return.", low=0, high=1
    )
    rate: float = option(
        0.2,
        "Probability that an occasion follows an event, where one can.",
        low=0,
        high=1,
    )
    returns: float = option(
        0.8, "Probability that an occasion is followed by a return.", low=0, high=1
    )
    gap: int = option(32, "Least events between an item and its return.", low=1)
    spread: int = option(
        32,
        "An item is due again after a delay drawn evenly from gap to gap + spread events.",
        low=0,
    )
    reach: int = option(96, "Most events between an item and its return.", low=1)


@dataclasses.dataclass
class DataConfig(Group):
    """Which interactions are read, how they are filtered, split and loaded."""

    dataset: str = option(
        "completejourney", "Data set, by the name of its reader.", choices=DATASETS
    )
    variant: str = option(
        "",
        "Release or part of the data set, such as 1m for movielens; empty: the reader's default.",
    )
    path: str = option(
        "", "Files of events: a file, a glob or a folder; empty: downloaded or generated."
    )
    items_path: str = option("", "Files of items with texts (table, amazon_reviews).")
    user_column: str = option("user_id", "Column of the user (table).")
    item_column: str = option("item_id", "Column of the item (table).")
    time_column: str = option("timestamp", "Column of the event's time (table).")
    user_kind: str = option(
        "auto",
        "Kind of user ids (table); auto: integers where all are, without leading zeros in a CSV.",
        choices=("auto", "text", "integer"),
    )
    item_kind: str = option(
        "auto", "Kind of item ids (table), as data.user_kind.", choices=("auto", "text", "integer")
    )
    event_column: str = option(
        "", "Column of the event's type, such as view or buy (table); empty: none."
    )
    text_columns: tuple[str, ...] = option((), "Columns of item texts in data.items_path (table).")
    time_unit: str = option(
        "s", "Unit of times that are numbers since 1970 (table).", choices=("s", "ms", "us", "ns")
    )
    time_format: str = option(
        "",
        "How times that are no ISO 8601 are written (table), as for strptime, such as %d/%m/%Y or "
        "%Y%m%d; empty: numbers, datetimes and ISO 8601 only.",
    )
    time_zone: str = option(
        "", "Zone of times that name none, such as Europe/Berlin (table); empty: UTC."
    )
    null_values: tuple[str, ...] = option(
        ("NULL", "\\N", "NA", "nan", "None"),
        "Words that mean that a user, item or time is missing (table).",
    )
    quotes: bool = option(
        True,
        'Whether " around a field of a CSV or TSV quotes it (table); False: a character as others.',
    )
    incomplete: str = option(
        "refuse",
        "Rows without user, item or time: an error, or dropped.",
        choices=("refuse", "drop"),
    )
    event_types: tuple[str, ...] = option((), "Types of events that are kept; empty: all.")
    repeats: str = option(
        "keep",
        "Repeated items of a user: all, none right after themselves, or first events only.",
        choices=("keep", "consecutive", "first"),
    )
    min_item_events: int = option(
        20, "Items with fewer events are dropped, before users are.", low=1
    )
    min_user_events: int = option(5, "Users with fewer remaining events are dropped.", low=1)
    max_user_events: int = option(
        0, "Users with more remaining events are dropped; 0: no limit.", low=0
    )
    core: bool = option(False, "Repeat the two minimum filters until nothing changes (k-core).")
    duplicates: str = option(
        "keep", "Rows with the same user, item and time.", choices=("keep", "drop")
    )
    split: str = option(
        "last",
        "last: the newest events of every user are held out; time: one global split in time.",
        choices=("last", "time"),
    )
    holdout: int = option(
        1,
        "Events per user for the test, and as many before them for validation (split=last).",
        low=1,
    )
    validation_time: float = option(
        0.8, "Quantile of event times where validation begins (split=time).", low=0, high=1
    )
    test_time: float = option(
        0.9, "Quantile of event times where the test begins (split=time).", low=0, high=1
    )
    append: tuple[str, ...] = option(
        (), "Later events to add to prepared data; every entry is like data.path."
    )
    cache_dir: str = option("", "Folder of the prepared data; empty: <workdir>/data.")
    seed: int = option(
        0, "Seed of the order inside baskets and of generated data.", low=0, high=2**31 - 1
    )
    prepare_workers: int = option(
        2, "Threads of the preparation; the result is the same for any number.", low=1
    )
    prepare_memory: int = option(
        1000, "Megabytes of the preparation's tables; the rest of them is on disk.", low=100
    )
    workers: int = option(1, "Threads that load batches; 0: none.", low=0)
    worker_processes: int = option(0, "Processes that load batches (grain); 0: none.", low=0)
    synthetic: SyntheticConfig = dataclasses.field(default_factory=SyntheticConfig)
    planted: PlantedConfig = dataclasses.field(default_factory=PlantedConfig)


@dataclasses.dataclass
class LayoutConfig(Group):
    """How a history is cut: S segments of n items with k compressed tokens, then recent items."""

    mode: str = option(
        "compressed",
        "compressed: segments and tokens; full: one segment without tokens; recent: recent window.",
        choices=("compressed", "full", "recent"),
    )
    segment_size: int = option(100, "n, items of a segment.", low=1, high=1 << 20)
    tokens: int = option(4, "k, compressed tokens per segment.", low=1, high=1 << 16)
    max_segments: int = option(
        4, "S, segments that are kept; older ones are dropped.", low=1, high=1 << 16
    )
    recent_min: int = option(
        1, "r_min, minimum items of the recent window; it holds up to r_min + n - 1.", low=0
    )
    positions: str = option(
        "segment",
        "Position of an item: offset inside its segment, or index in the whole layout.",
        choices=("segment", "absolute"),
    )
    window: int = option(
        0,
        "Semi-local attention, a baseline for mode=full: a position sees this many newest "
        "positions and the first layout.prefix; 0: all.",
        low=0,
    )
    prefix: int = option(0, "First positions that all see (layout.window).", low=0)

    @property
    def recent(self) -> int:
        """Capacity of the recent window, items."""
        return self.recent_min + self.segment_size - 1

    @property
    def history(self) -> int:
        """Items that the layout covers: segments and recent window."""
        return self.max_segments * self.segment_size + self.recent
