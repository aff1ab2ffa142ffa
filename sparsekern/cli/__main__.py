"""python -m sparsekern.cli"""
import sys

from sparsekern.cli import main

if __name__ == "__main__":
    sys.exit(main())
