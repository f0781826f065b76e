"""
The traffic log: one JSON line for each request and each response.

Records and their JSON, the redaction of secrets, the thread that writes, and the rotated file. Not
here: the daemon's own log (`twisted.logger`), and the code that fills in the records (`proxy`).
"""
