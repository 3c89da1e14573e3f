"""Getting data sets, encoding columns, batches of columnar arrays."""
