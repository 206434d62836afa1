"""Methods of any depth from those of a few layers: what repeats is predicted, and the prediction proves itself."""
