"""Ray as an executor of lora-core: the work of a fleet on this machine or a cluster."""
