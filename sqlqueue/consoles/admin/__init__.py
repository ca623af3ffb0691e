"""The admin console: find jobs, understand them, act on them."""
