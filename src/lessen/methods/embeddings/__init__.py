"""Methods that shrink tables of rows looked up by id."""
