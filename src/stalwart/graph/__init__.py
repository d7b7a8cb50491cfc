"""A traced operator graph of any module: structure, no mathematics."""

from stalwart.graph.graph import Graph, Node
from stalwart.graph.trace import trace

__all__ = ["Graph", "Node", "trace"]
