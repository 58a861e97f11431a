"""`python -m vlad.cli` is `vlad`."""

from vlad.cli import main

main()
