"""What is spoken: tasks, Gaussian clouds, their bytes (PLY, SPZ), signatures and synapses."""
