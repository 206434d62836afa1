"""How MLX-LM names its files."""

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
OLD_WEIGHTS = "adapters.npz"
