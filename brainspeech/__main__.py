"""``python -m brainspeech``: the command line, where a launcher wants a module."""

import sys

from brainspeech.cli import main

if __name__ == "__main__":
    sys.exit(main())
