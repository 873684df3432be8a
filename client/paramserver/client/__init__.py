"""Drives training: describes jobs, launches processes, watches them and evaluates what they learnt."""
