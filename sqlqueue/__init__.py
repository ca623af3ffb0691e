"""A task queue with Celery's manners in one SQLite file."""
