"""The version of the files that a run keeps on disk, its checkpoints included."""

from pathlib import Path
from typing import Any

from lmx.config.registry import ConfigError

SCHEMA = 4  # raised by each change that readers of another version cannot handle


def check_schema(path: Path, schema: Any) -> None:
    """Raises ConfigError unless the files at `path` have the schema of this lmx."""
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        raise ConfigError(
            f"{path} was written by {'a newer' if newer else 'an older'} lmx (schema"
            f" {schema}; this lmx reads schema {SCHEMA}): use that version of lmx, or"
            " start a new run in another folder."
        )
