"""`jaxrec train`, from a checkout: `python train.py --help` says how."""

import sys

from jaxrec.cli import train
from jaxrec.runtime.program import exit_status

if __name__ == "__main__":
    sys.exit(exit_status("train.py", train.main))
