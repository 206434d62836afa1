"""XNNPACK through ExecuTorch: programs with one shared foundation file and the weight cache."""
