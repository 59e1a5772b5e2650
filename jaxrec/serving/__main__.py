"""`python -m jaxrec.serving`."""

import sys

from jaxrec.serving.command import run

if __name__ == "__main__":
    sys.exit(run())
