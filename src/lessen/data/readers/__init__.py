"""The one reader of tables for `data encode`, `data infer` and `rank`.

file -> opening (unpacked bytes) -> lines (whole records, UTF-8) -> delimited | json_lines | sparse \\
                                                                                    parquet -> Piece -> values (text)
"""

from lessen.data.readers.faults import Faults, RowError
from lessen.data.readers.piece import Piece
from lessen.data.readers.reading import PIECE_BYTES, columns_of, find_files, format_of, read_pieces
from lessen.data.readers.settings import FORMATS, SUFFIXES, Format, ReadSettings
from lessen.data.readers.values import as_text

__all__ = [
    "FORMATS", "PIECE_BYTES", "SUFFIXES", "Faults", "Format", "Piece", "ReadSettings", "RowError", "as_text",
    "columns_of", "find_files", "format_of", "read_pieces",
]  # fmt: skip
