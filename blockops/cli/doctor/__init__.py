"""
The doctor: examines a backend and prints the settings that fit it (`python -m blockops.doctor`).

Each module but these examines one or more topics of the report: `diagnosis` runs the examinations
in order, `findings` is the report, `__main__` the command. A finding is based on the backend's
responses, not on its name, except where its text says so.
"""
