"""The smallest compiled loop."""

from stalwart.core.jit import compiled
from stalwart.core.jit_arguments import float32, my_share


@compiled
def add_one(words):
    begin, end = my_share(words)
    values = float32(words[3], (words[2],))
    for k in range(begin, end):
        values[k] += 1
