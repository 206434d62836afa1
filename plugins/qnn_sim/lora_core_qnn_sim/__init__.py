"""QNN-style simulator: context binary, grouped encodings and weights sections, vendor input files."""
