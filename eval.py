"""`jaxrec evaluate`, from a checkout: `python eval.py --help` says how."""

import sys

from jaxrec.cli import evaluate
from jaxrec.runtime.program import exit_status

if __name__ == "__main__":
    sys.exit(exit_status("eval.py", evaluate.main))
