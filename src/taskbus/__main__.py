"""``python -m taskbus``: the command line."""

import sys

from taskbus.cli import main

if __name__ == "__main__":  # spawned workers import this file under another name
    sys.exit(main())
