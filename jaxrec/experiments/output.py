"""The folder of tables: one configuration each."""

import pathlib

from jaxrec.errors import WorkdirError
from jaxrec.experiments import registry, result_table, settings, verify


def check_output(output: pathlib.Path, config: settings.ExperimentsConfig) -> None:
    """Raises WorkdirError where the folder holds tables of another configuration."""
    for name in registry.EXPERIMENTS:
        file = output / f"{name}.json"
        if not file.is_file():
            continue
        # a key that was added since has its default in older tables
        stored = settings.record(settings.rebuild(result_table.read(file)["config"]))
        chosen = settings.record(config)
        if name != "probe":  # its settings decide no other table
            del stored["experiments"]["probe"], chosen["experiments"]["probe"]
        if stored != chosen:
            first = next(iter(verify.differing(stored, chosen)), "its keys")
            raise WorkdirError(
                f"{output} holds tables of another configuration ({first}): name another "
                "--output, or remove its tables"
            )
