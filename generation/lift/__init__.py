"""Cut-out to Gaussian cloud: 3D back ends."""
