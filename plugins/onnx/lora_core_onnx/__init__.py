"""The ONNX Runtime backend of lora-core."""
