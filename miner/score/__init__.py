"""The score log and what is read from it."""
