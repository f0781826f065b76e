"""
The command line: the options of `twistd blockops`, their completion in bash, and the doctor.

The settings themselves are declared in `blockops.settings`; the daemon that they start is in
`blockops.daemon`. This package only parses arguments, and prints.
"""
