"""What is trained on which data: our recipes, the peers, where the sources lie."""

import argparse
import importlib
import io
import os
import pathlib
import zipfile
from typing import Any

# data set -> our rows: name -> recipe, the first one decides how the data is prepared
OURS: dict[str, dict[str, str]] = {
    "completejourney": {
        "jaxrec-hstu-compressed": "configs/completejourney_hstu.py:compressed",
        "jaxrec-hstu-full": "configs/completejourney_hstu.py:full",
        "jaxrec-hstu-discover": "configs/completejourney_hstu.py:discover",
    },
    "ml-latest-small": {"jaxrec-hstu": "configs/movielens_quality.py:latest-small"},
    "ml-100k": {"jaxrec-hstu": "configs/movielens_quality.py:100k"},
}
DATA = tuple(OURS)

# peer -> module of its environment that trains it
PEERS = {
    "rectools-sasrec": "rectools_models",
    "rectools-hstu": "rectools_models",
    "recbole-sasrec": "recbole_models",
}
INTER = "ml-100k.inter"


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command that reads events from their source."""
    parser.add_argument(
        "--ml-latest-small", default="", help="folder with interactions.parquet or .csv"
    )
    parser.add_argument("--ml-100k", default="", help=f"folder or wheel with recbole's {INTER}")


def locate(args: argparse.Namespace) -> None:
    """Tells `configs/movielens_quality.py` where its sources are."""
    if args.ml_latest_small:
        os.environ["JAXREC_ML_LATEST_SMALL"] = args.ml_latest_small
    if args.ml_100k:
        file = args.runs / "sources" / "ml-100k" / "interactions.csv"
        if not file.is_file():
            write_100k(pathlib.Path(args.ml_100k), file)
        os.environ["JAXREC_ML_100K"] = str(file.parent)


def write_100k(source: pathlib.Path, file: pathlib.Path) -> None:
    """RecBole's copy of MovieLens 100k as a table with the column names of `configs`.

    source: the folder that holds it, or a wheel. Raises SystemExit when it is not there.
    """
    if source.is_dir() and (source / INTER).is_file():
        text = (source / INTER).read_text()
    elif source.is_file() and zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(f"/{INTER}")]
            if not names:
                raise SystemExit(f"{source}: holds no {INTER}")
            text = io.TextIOWrapper(wheel.open(names[0]), "utf-8").read()
    else:
        raise SystemExit(f"--ml-100k={source}: neither a folder with {INTER} nor a wheel")
    lines = text.splitlines()
    heads = [column.partition(":")[0] for column in lines[0].split("\t")]
    rows = [",".join(heads), *(line.replace("\t", ",") for line in lines[1:])]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(rows) + "\n")


def load(recipe: str) -> Any:
    """The Config of `configs/FILE.py:ARGUMENT`."""
    file, _, argument = recipe.partition(":")
    module = ".".join(pathlib.PurePath(file).with_suffix("").parts)
    return importlib.import_module(module).get_config(*filter(None, [argument]))


def config_of(data: str) -> Any:
    """The Config that prepares a data set."""
    return load(next(iter(OURS[data].values())))
