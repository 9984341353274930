"""``python -m cbtlab`` is the command line."""

from cbtlab.cli import main

main()
