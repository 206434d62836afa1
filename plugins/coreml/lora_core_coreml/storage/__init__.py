"""The file formats inside a CoreML bundle, read and written without torch, executorch or coremltools."""
