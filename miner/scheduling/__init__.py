"""What to accept, in which order, at which quality. Pure: a clock and numbers in, values out."""
