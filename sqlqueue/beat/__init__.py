"""The periodic producer: what is due when (schedule), and the process that enqueues it (service)."""
