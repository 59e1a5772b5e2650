"""The rules behind `jaxrec.data.advice`: from facts about data to values, each with its reason.

Where a rule has a number, the comment beside it says what it was taken from: recipes that were
measured (docs/recipes.md, results/) or arithmetic. Nothing here reads data.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

from jaxrec.data.advice_facts import ALIKE, COARSE, NEVER, TIED, Choice, Facts
from jaxrec.data.rhythm import duration

SHORT = 100  # events: the recent window of the recipes; a request over so few is cheap
# items of a segment: those of ml1m.py, synthetic.py, completejourney_hstu.py, kuairand.py. The
# recent window is as long; most users must have more than it, or nothing is compressed
SEGMENTS, WINDOW_OF_MEDIAN = (25, 50, 100, 128), 1 / 3
TOKENS, MAX_SEGMENTS = 4, 16
FULL_SOFTMAX = 5000  # items; beyond, the logits of a step outgrow its encoder
BASKETS = 0.2  # share of events at the time of the one before
POSITIONS = 32_768  # item slots of a step
EPOCHS, MOST_STEPS, FEWEST_STEPS = 30, 20_000, 200
LARGE_TABLE = 1_000_000  # items
FEW_USERS = 1000
DAY = 86_400

# what advice may choose
KEYS = (
    *(f"layout.{key}" for key in ("mode", "segment_size", "max_segments", "recent_min", "tokens")),
    *(f"model.{key}" for key in ("token_input", "backbone", "width", "heads", "layers")),
    *(f"model.{key}" for key in ("item_bias", "repeat_half_lives", "repeat_half_times")),
    *("model.sasrec.time_bias", "loss.kind", "loss.negatives", "eval.filter_seen"),
    *(f"train.{key}" for key in ("batch_size", "steps", "warmup", "learning_rate", "ema")),
    *(f"train.{key}" for key in ("eval_every", "checkpoint_every", "patience")),
    *(f"train.{key}" for key in ("validation_users", "length_buckets", "table_update")),
)


class Shape(NamedTuple):
    """A layout: its mode, items of a segment, segments, r_min and the events that it covers."""

    mode: str
    segment_size: int
    segments: int
    recent_min: int

    @property
    def recent(self) -> int:
        """Largest recent window."""
        return self.recent_min + self.segment_size - 1

    @property
    def history(self) -> int:
        """Events that the layout covers."""
        return self.segments * self.segment_size + self.recent


def shape(facts: Facts, mode: str = "") -> Shape:
    """The layout for histories of these lengths; mode: the user's choice, empty: none."""
    usual = facts.quantiles["90%"]
    mode = mode or ("full" if usual <= SHORT else "compressed")
    if usual <= SHORT and mode == "full":
        half = max(-(-min(facts.quantiles["99%"], 2 * SHORT) // 2), 4)
        return Shape("full", half, 1, 1)
    # recent and full of long histories are cut as compressed ones are, to compare with them
    size = max(usual // 4, 4)
    if usual > SHORT:
        most = facts.quantiles["50%"] * WINDOW_OF_MEDIAN
        size = max((n for n in SEGMENTS if n <= most), default=SEGMENTS[0])
    least = size + 1 if size < 50 else 1  # a window of 1 to 25 would be short: ml1m.py
    recent = least + size - 1
    segments = min(max(-(-(usual - recent) // size), 1), MAX_SEGMENTS)
    return Shape(mode, size, segments, least)


def layout(facts: Facts, chosen: Shape) -> Iterator[Choice]:
    """Mode, segments, tokens, recent window."""
    usual, median = facts.quantiles["90%"], facts.quantiles["50%"]
    compressed = chosen.mode == "compressed"
    # before the mode: a model of one layer needs it where there are tokens
    reason = "tokens that start from an average of their segment return more (results/probe)"
    yield Choice("model.token_input", "pooled", reason)
    if compressed:
        reason = (
            f"histories reach beyond a recent window of {chosen.recent}: {median:,} events in the "
            f"median, {usual:,} or more for every tenth user"
        )
        yield Choice("layout.mode", chosen.mode, reason)
    else:
        reason = (
            f"9 of 10 users have {usual:,} events or fewer: a request reads them all cheaply, "
            "nothing is left to compress"
        )
        yield Choice("layout.mode", chosen.mode, reason)
    if not compressed and chosen.segments == 1:
        reason = f"half of a window of {chosen.history} events"
        reason += ", which 99 of 100 fit in" if facts.quantiles["99%"] <= chosen.history else ""
        yield Choice("layout.segment_size", chosen.segment_size, reason)
        yield Choice("layout.max_segments", 1, "the window is one segment and the recent part")
        yield Choice("layout.recent_min", 1, "without tokens the boundary means nothing")
        return
    reason = f"a small part of a median history of {median:,} events, as in the measured recipes"
    if usual <= SHORT:
        reason = f"a quarter of {usual:,} events, which 9 of 10 histories fit in"
    yield Choice("layout.segment_size", chosen.segment_size, reason)
    reach = "nine of ten whole histories" if chosen.history >= usual else "the newest events"
    reason = f"with the recent window {chosen.history:,} events: {reach}"
    yield Choice("layout.max_segments", chosen.segments, reason)
    if compressed:
        reason = "that of the measured recipes; `jaxrec tune --search layout.tokens=1,2,4,8,16`"
        yield Choice("layout.tokens", TOKENS, reason)
    reason = f"a recent window of {chosen.recent_min} to {chosen.recent} events"
    yield Choice("layout.recent_min", chosen.recent_min, reason)


def model(facts: Facts) -> Iterator[Choice]:
    """Backbone, size, use of times."""
    reason = "the modern block returns more of a planted signal than HSTU (results/probe)"
    yield Choice("model.backbone", "sasrec", reason)
    width = next(
        width
        for most, width in ((20_000, 32), (5_000_000, 64), (100_000_000, 128), (math.inf, 256))
        if facts.train_events <= most
    )
    reason = f"{facts.train_events:,} training events"
    yield Choice("model.heads", width // 32, "heads of 32 dimensions")
    yield Choice("model.width", width, reason)
    deep = facts.train_events > 100_000_000
    yield Choice("model.layers", 4 if deep else 2, reason)
    yield Choice("model.sasrec.time_bias", facts.times_tell, _times(facts))


def _times(facts: Facts) -> str:
    if facts.times_tell:
        gap = duration(facts.gap_seconds["50%"])
        return f"times are fine enough to tell sittings apart: a median gap of {gap}"
    if facts.time_step == 0 or facts.days == 0:
        return "all times of a user are equal: they say nothing"
    if facts.tied > TIED:
        return f"{facts.tied:.0%} of the events share the time of the one before"
    if facts.common_gap_share > ALIKE:
        return f"{facts.common_gap_share:.0%} of the gaps are alike: times are but an order"
    if facts.time_step > COARSE:
        return f"times come in steps of {duration(facts.time_step)}: too coarse for a gap"
    return f"all events lie within {duration(facts.days * DAY)}"


def repeats(facts: Facts) -> Iterator[Choice]:
    """Seen items, counters of history items and their half-lives, popularity in scores."""
    share = f"{facts.repeated:.1%} of the events are of an item that the user had before"
    yield Choice("eval.filter_seen", facts.repeated < NEVER, share)
    # with counters popularity in the scores was worth nothing, without them it helped
    reason = "training begins at popularity instead of learning it first"
    if facts.counted:
        reason = "history items in the scores do what it would (ablations of the grocery recipe)"
    yield Choice("model.item_bias", not facts.counted, reason)
    if not facts.counted:
        yield Choice("model.repeat_half_lives", (), f"no counters: {share}")
        yield Choice("model.repeat_half_times", (), "no counters")
        return
    early, late = facts.repeat_events["25%"], facts.repeat_events["75%"]
    lives = sorted({_power(early), _power(late)})
    reason = f"{share}, half of them {early:,} to {late:,} events later; 0: counts that stay"
    yield Choice("model.repeat_half_lives", (*map(float, lives), 0.0), reason)
    early, late = facts.repeat_seconds["25%"], facts.repeat_seconds["75%"]
    timed = facts.days >= 1 and facts.time_step > 0 and facts.common_gap_share <= ALIKE
    basket = facts.tied >= BASKETS
    if not timed and not basket:
        yield Choice("model.repeat_half_times", (), "times say nothing about when an item returns")
        return
    seconds = sorted({_nice(n) for n in (early, late) if n > 0}) if timed else []
    reason = f"half of the repeats come {duration(early)} to {duration(late)} later"
    if basket:
        reason += f"; 0.1: the basket at hand ({facts.tied:.0%} share the time of the one before)"
    yield Choice("model.repeat_half_times", (*([0.1] if basket else []), *seconds), reason)


def loss(facts: Facts) -> Iterator[Choice]:
    """Full or sampled softmax, and how large tables are updated."""
    if facts.items <= FULL_SOFTMAX and not facts.counted:
        reason = f"{facts.items:,} items: a step can compare with all of them"
        yield Choice("loss.kind", "softmax", reason)
    else:
        reason = f"{facts.items:,} items: a step compares with a sample, whatever their number"
        if facts.items <= FULL_SOFTMAX:
            reason = "counts of history items need negatives"
        yield Choice("loss.kind", "sampled_softmax", reason)
        negatives = max(min(1024, facts.items - 1), 1)
        reason = "fewer were worse on small MovieLens data" if negatives == 1024 else "all others"
        yield Choice("loss.negatives", negatives, reason)
    if facts.items > LARGE_TABLE:
        reason = f"a step touches few of {facts.items:,} rows: only these are updated"
        yield Choice("train.table_update", "adagrad", reason)


def training(facts: Facts, chosen: Shape, fixed: Mapping[str, object]) -> Iterator[Choice]:
    """Batch, steps, schedule, validation. fixed: decided settings, steps and batch among them."""
    window = max(min(chosen.history, facts.mean_events), 1)
    windows = max(facts.train_events / window, facts.users, 1)
    # a hundred steps an epoch: 8 for 610 users was far better than 32 (ablations). For 6,040 users
    # that is 64, and 16 at a higher rate were better (docs/tokens.md): a rule for both is not known
    batch = _power(min(max(windows / 100, 8), 128, max(POSITIONS / chosen.history, 8)))
    batch = cast(int, fixed.get("train.batch_size", batch))
    reason = f"an epoch has some {_round(windows):,} windows: a hundred steps or more come from it"
    yield Choice("train.batch_size", batch, reason)
    wanted = EPOCHS * windows / batch
    steps = _round(min(max(wanted, FEWEST_STEPS), MOST_STEPS))
    steps = cast(int, fixed.get("train.steps", steps))
    reason = f"{EPOCHS} epochs"
    if steps * batch < 0.9 * EPOCHS * windows:
        reason = f"{steps * batch / windows:.2g} epochs; more where validation still rises"
    elif steps > wanted * 1.1:
        reason = "the least that a model of this kind needs"
    yield Choice("train.steps", steps, reason)
    yield Choice("train.warmup", min(100, steps // 10), "a tenth of the steps at most")
    rate = 2e-3 if facts.train_events <= 5_000_000 else 1e-3
    yield Choice("train.learning_rate", rate, "that of the recipes of this width")
    if facts.items <= LARGE_TABLE and steps >= 2000:
        reason = "averaged parameters beside a falling rate, as in ml1m.py"
        yield Choice("train.ema", 0.999, reason)
    every = max(steps // 20, 10)
    yield Choice("train.eval_every", every, "twenty validations")
    yield Choice("train.checkpoint_every", every, "with the validations")
    yield Choice("train.patience", 8, "validations without improvement that end the training")
    users = 2000 if facts.users > 2000 else 0
    reason = f"of {facts.users:,} users" if users else f"all {facts.users:,} users"
    yield Choice("train.validation_users", users, reason)
    median = facts.quantiles["50%"]
    spread = median < chosen.history / 2 and steps >= 2000
    reason = f"windows of {chosen.history:,} slots, a median history of {median:,} events"
    reason += ": short ones share rows" if spread else ""
    yield Choice("train.length_buckets", 8 if spread else 1, reason)


def notes(facts: Facts, chosen: Shape) -> Iterator[str]:
    """What no setting mends, or only the user can decide."""
    if facts.test_users < FEW_USERS:
        half = 1.96 * math.sqrt(0.1 * 0.9 / max(facts.test_users, 1))
        yield (
            f"too few users to tell models apart: {facts.test_users:,} have a test target, so the "
            f"95 % interval of a Recall@10 of 0.10 is some {half:.3f} to either side. Several "
            "events a user (data.holdout) help a little, more users help"
        )
    if facts.quantiles["50%"] < 5:
        yield (
            f"half of the users have {facts.quantiles['50%']} events or fewer: there is hardly a "
            "sequence to learn from. Compare with the rows `popularity` and `copy-last`"
        )
    longest = facts.quantiles["100%"]
    if chosen.history < longest:
        yield (
            f"the longest history has {longest:,} events, a model sees the newest "
            f"{chosen.history:,}. Raise layout.max_segments to see more"
        )
    if facts.rare_items > facts.items / 10:
        yield (
            f"{facts.rare_items:,} of {facts.items:,} items have fewer than 5 events, too few to "
            "learn a vector from: data.min_item_events=5 drops them, which makes the task easier"
        )
    if facts.items > LARGE_TABLE:
        width = 32 if facts.train_events <= 20_000 else 64
        size = facts.items * width * 4 / 1e9
        yield (
            f"an item table of width {width} is {size:.1f} GB: model.item_width makes vectors "
            "narrower, model.item_hash shares rows, mesh.model spreads them (docs/scale.md)"
        )


def _power(number: float) -> int:
    """The largest power of two that is not above `number`; 1 at least."""
    return 1 << max(int(number).bit_length() - 1, 0)


def _round(number: float) -> int:
    """Two significant digits."""
    whole = max(round(number), 0)
    digits = max(len(str(whole)) - 2, 0)
    return int(round(whole, -digits))


def _nice(seconds: float) -> float:
    """The closest of some common spans of time, seconds."""
    spans = (60, 600, 3600, 6 * 3600, *(DAY * n for n in (1, 3, 7, 14, 30, 90, 180, 365)))
    return float(min(spans, key=lambda span: abs(math.log(span / seconds))))
