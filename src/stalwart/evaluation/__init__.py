"""Floor 3: suites of attacks, statistics, masking diagnostics."""
