"""Studies: measurements of the method. They run from a checkout and use ``medqdm``."""
