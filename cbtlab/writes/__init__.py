"""Write sequences as pandas DataFrames: the schema, the native stream, foreign formats."""

from cbtlab.writes.accessor import WritesAccessor
from cbtlab.writes.read import iter_writes, read_writes, save_writes
from cbtlab.writes.schema import COLUMNS, OPS, VOLUMES, empty, normalize

__all__ = [
    "COLUMNS",
    "OPS",
    "VOLUMES",
    "WritesAccessor",
    "empty",
    "iter_writes",
    "normalize",
    "read_writes",
    "save_writes",
]
