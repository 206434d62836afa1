"""Templates and their placeholders: what linking starts from."""
