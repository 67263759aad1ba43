"""What is decided: what to accept, when to drop, what to log and how to answer."""
