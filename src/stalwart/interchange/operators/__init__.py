"""What ONNX's operators mean, in plain torch: one small function each, and one table."""
