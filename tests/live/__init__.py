"""
blockops as users run it: real `twistd` processes, real sockets, real backends, real clients.

This package holds the tests that start processes, and their backends and clients. Tests within one
process belong to the package that they test. `bash tests/live/run` installs the requirements and
runs all of them; trial alone runs those that are quick and need only blockops.
"""
