"""The score log and what is read from it."""

FILE_NAME = "score.jsonl"
