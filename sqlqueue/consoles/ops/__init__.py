"""The ops console: one page to leave open, which knows no way to change anything."""
