"""The subnet: its metagraph, on a chain or in a file, and the wallets."""
