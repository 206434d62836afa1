"""What `verify` does: a bundle's numbers against an independent reference, its files against what they claim."""
