"""`python -m fewstep`: the command line where no console script is at hand."""

from fewstep.cli import main

if __name__ == "__main__":
    main()
