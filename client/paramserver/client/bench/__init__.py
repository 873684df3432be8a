"""Measures what training costs beside what the machine could do at best, in one run."""
