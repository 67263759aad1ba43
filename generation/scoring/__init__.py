"""What a validator will say of a cloud."""
