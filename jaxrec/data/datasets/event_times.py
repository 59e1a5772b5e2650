"""Times of events in files: texts and numbers become datetimes, with and without a zone."""

from pathlib import Path
from typing import TYPE_CHECKING

from jaxrec.data.datasets.file_format import Format, place
from jaxrec.errors import DataError

if TYPE_CHECKING:
    import polars as pl

OFFSET = r"(?:Z|[+-]\d{2}:?\d{2})$"  # of an ISO time with a zone
# texts that are ISO 8601; others, such as 02/01/2024, can be read in more than one way
ISO = r"^\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?$"
ZONES = {None: "", True: ", times with a zone", False: ", times without a zone"}


class Zones:
    """Parses the time columns of a source; zoned: whether its times have a zone, None: unknown."""

    def __init__(self, file_format: Format) -> None:
        self.file_format = file_format
        self.zoned: bool | None = None

    def read(self, frame: "pl.DataFrame", file: Path, first_row: int) -> "pl.DataFrame":
        """The frame with its time columns as datetimes; first_row: of the frame in the file.

        Raises DataError, with file and row, for a time that is not written as the format says.
        """
        import polars as pl

        zone = self.file_format.zone
        for column in self.file_format.times:
            series = frame[column]
            if self.file_format.time_format:
                series = self._parse_format(series, column, file, first_row)
            elif series.dtype == pl.String:
                series = self._parse(series, column, file, first_row)
            if series.dtype == pl.Date:
                series = series.cast(pl.Datetime("ms"))
            if zone and series.dtype == pl.Datetime and series.dtype.time_zone is None:  # type: ignore[attr-defined]
                try:
                    series = series.dt.replace_time_zone(zone, ambiguous="earliest")
                except pl.exceptions.PolarsError as error:
                    raise DataError(
                        f"{file}: column {column!r} holds a time that does not exist in "
                        f"data.time_zone={zone!r}: {error}"
                    ) from error
            frame = frame.with_columns(series)
        return frame

    def _parse_format(
        self, series: "pl.Series", column: str, file: Path, first_row: int
    ) -> "pl.Series":
        """Datetimes of numbers or texts that are written as the format says."""
        import polars as pl

        pattern = self.file_format.time_format
        if series.dtype.is_temporal():
            raise DataError(
                f"{file}: column {column!r} holds datetimes, which need no "
                f"data.time_format={pattern!r}: leave it empty"
            )
        texts = series.cast(pl.String)
        # polars needs minutes beside hours
        minute = " 00" if "%H" in pattern and "%M" not in pattern else ""
        try:
            times = (texts + minute).str.to_datetime(
                pattern + (" %M" if minute else ""), time_unit="us", strict=False
            )
        except pl.exceptions.PolarsError as error:
            raise DataError(f"data.time_format={pattern!r}: no format of times: {error}") from error
        bad = times.is_null() & texts.is_not_null()
        if bad.any():
            row = int(bad.arg_max() or 0)
            raise DataError(
                f"{file}, {place(file, first_row + row, self.file_format)}: column {column!r} "
                f"holds {texts[row]!r}, which is not written as data.time_format={pattern!r}. "
                "Repair the row or change the format"
            )
        return times

    def _parse(self, series: "pl.Series", column: str, file: Path, first_row: int) -> "pl.Series":
        import polars as pl

        texts = series.str.replace(r" ?UTC$", "Z")
        self._refuse(~texts.str.contains(ISO), series, file, first_row)
        zoned = texts.drop_nulls().str.contains(OFFSET)
        if len(zoned):
            mixed = zoned.any() != zoned.all() or self.zoned not in (None, zoned.all())
            if mixed:
                raise DataError(
                    f"{file}: column {column!r} mixes times with and without a zone (Z or +hh:mm). "
                    "Write all of them one way; data.time_zone is for those without"
                )
            self.zoned = bool(zoned.all())
        zone = None if self.file_format.zone and not self.zoned else "UTC"
        try:
            return texts.str.to_datetime(strict=True, time_zone=zone)
        except pl.exceptions.PolarsError:  # a day or an hour that does not exist
            dates = texts.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False)
            self._refuse(dates.is_null() & texts.is_not_null(), series, file, first_row)
            self._refuse(texts.is_not_null(), series, file, first_row)
            raise

    def _refuse(self, bad: "pl.Series", series: "pl.Series", file: Path, first_row: int) -> None:
        """Raises DataError for the first row that is bad; a null is none."""
        if not bad.any():
            return
        row = int(bad.fill_null(False).arg_max() or 0)
        raise DataError(
            f"{file}, {place(file, first_row + row, self.file_format)}: column {series.name!r} is "
            f"text that is not an ISO 8601 datetime, for example {series[row]!r}. Give seconds "
            "since 1970 or datetimes such as 2024-01-31T12:00:00, or say how the times are "
            "written, such as data.time_format='%d/%m/%Y %H:%M:%S'"
        )
