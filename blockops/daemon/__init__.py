"""
The process: builds the objects from the settings, starts, reloads, drains and stops them.

What concerns the process as a whole belongs here: signals, systemd, file descriptors. Requests are
processed in `blockops.proxy` and lower packages; the command line is in `blockops.cli`.
"""
