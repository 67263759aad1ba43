"""A mock of the subnet owner's gateway, for trials of workers and clients on this machine."""
