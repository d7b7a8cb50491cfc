"""Smooth and step functions: sound intervals and lines, rounded outward."""
