"""
blockops as its users run it: real `twistd` processes, real sockets, real backends, real clients.

`bash tests/live/run` installs what the long ones need and runs all of them; the plain test command
runs those that are quick and need nothing besides blockops.
"""
