"""How the networks are made fast on a GPU without changing what they compute."""
