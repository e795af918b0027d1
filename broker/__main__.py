"""The command as a module: ``python -m broker``."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
