"""Files of a bundle, as bytes."""
