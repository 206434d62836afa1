"""What is stored once and what is not: blobs, fingerprints, the sharing report."""
