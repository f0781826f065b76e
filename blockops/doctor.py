"""`python -m blockops.doctor`: the short name of `blockops.cli.doctor`."""

from blockops.cli.doctor.__main__ import main

if __name__ == "__main__":
    main()
