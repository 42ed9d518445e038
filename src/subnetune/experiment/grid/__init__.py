"""A grid: tasks x methods x seeds x train sizes, each cell a run directory that is never run twice."""
