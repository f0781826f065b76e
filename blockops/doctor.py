"""The command `python -m blockops.doctor`, a short name for `blockops.cli.doctor`."""

from blockops.cli.doctor.__main__ import main

if __name__ == "__main__":
    main()
