"""Getting data sets, encoding columns, batches of columnar arrays."""

from lessen.data.catalogue import DATASETS, get, list_datasets, read
from lessen.data.source import Source

__all__ = ["DATASETS", "Source", "get", "list_datasets", "read"]
