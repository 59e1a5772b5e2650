"""`python -m jaxrec`: the console script `jaxrec`."""

import sys

from jaxrec.cli.main import run

if __name__ == "__main__":
    sys.exit(run())
