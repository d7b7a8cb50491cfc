"""What each operator means for bounds: one rule an operator, one file a family of rules."""
