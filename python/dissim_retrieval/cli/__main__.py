"""`python -m dissim_retrieval.cli`, the same as `dissim`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
