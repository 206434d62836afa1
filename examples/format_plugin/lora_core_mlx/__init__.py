"""An example adapter format: adapters as MLX-LM saves them."""
