"""stalwart: train robust networks, attack them honestly, read the result on one page."""
