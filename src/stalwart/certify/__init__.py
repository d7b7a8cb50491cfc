"""Floor 3: certificates. Each proves, or gives up; none of them ever guesses."""
