"""Adapters as MLX-LM saves them."""
