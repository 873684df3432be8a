"""Tables: rows of parameters by 64-bit key, of which a step touches few."""
