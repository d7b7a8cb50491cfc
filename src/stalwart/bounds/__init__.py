"""Sound bounds of outputs over sets of inputs or weights: methods (how to walk) and rules (what operators mean)."""

from stalwart.bounds.methods import METHODS, Bounds, bound, margin_bound, margin_bounds

__all__ = ["METHODS", "Bounds", "bound", "margin_bound", "margin_bounds"]
