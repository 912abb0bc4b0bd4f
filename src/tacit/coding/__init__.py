"""Observations to bytes and back: exact networks, the masses a coder needs, and the files that hold them."""
