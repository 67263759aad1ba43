"""What is made: a task in, a Gaussian cloud out. Knows torch; knows nothing of Bittensor."""
