"""The licences of what the distributions of this repository need."""
