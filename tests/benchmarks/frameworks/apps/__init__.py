"""The same application for every framework: modules that a publisher and workers import.

Each has `ENQUEUE`: by the name of a job of `jobs`, what enqueues one.
"""
