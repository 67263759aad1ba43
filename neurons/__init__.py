"""The doors: one short file per program."""
