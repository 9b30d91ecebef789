"""`python -m iolaus` is the command `iolaus`."""

from iolaus.app import main

main()
