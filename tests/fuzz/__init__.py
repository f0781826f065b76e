"""
Fuzzers: the parser, guided by coverage, and whole requests in memory, mutated at random.

They look for input that no example and no property test covers. They are programs, run by
`.ci/run`; trial finds no tests here.
"""
