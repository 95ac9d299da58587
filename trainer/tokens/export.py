"""`python -m trainer.tokens.export FOLDER`: the name that encode/export.py had, for scripts."""

import sys

from trainer.tokens.encode.export import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
