"""Floor 0: errors, registry tables, seeded generators, number parsing, input checks, atomic files."""
