"""Requests that no sound client sends, and what servers make of them."""
