"""`python -m spfde`: the command line."""

from spfde.cli import main

main()
