"""`python -m fedmap`; see `fedmap.cli`."""

import sys

from fedmap.cli import main

if __name__ == "__main__":
    sys.exit(main())
