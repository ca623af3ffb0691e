"""`python -m sqlqueue`: the command line, where no `sqlqueue` script is on the path."""

import sys

from sqlqueue.cli import main

if __name__ == "__main__":
    sys.exit(main())
