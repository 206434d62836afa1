"""The plugin system: discovery, registries, and calls into plugins that blame the right one."""
