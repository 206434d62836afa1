"""Files that the vendor's tools take."""
