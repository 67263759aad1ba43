"""Gateway: this miner takes tasks from the subnet owner's gateway and uploads the results."""
