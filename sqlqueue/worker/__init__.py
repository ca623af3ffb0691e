"""The worker: a supervisor that runs no user code, and the children that do."""
