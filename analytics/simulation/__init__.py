"""A year of one product on a clock of its own: see :mod:`analytics.simulation.year`."""
