"""Values, names and errors that everything else is made of."""
