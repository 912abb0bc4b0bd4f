"""Distributions that models of several families end in."""
