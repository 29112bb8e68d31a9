"""Open the metrics database to read it, and give its frames the same types from both engines."""

from __future__ import annotations

from datetime import date

import pandas as pd
import sqlalchemy as sa

from nightgate.database.column_types import UtcTime
from nightgate.database.schema import METADATA
from nightgate.database.transactions import Database
from nightgate.home import home_for_reading


def open_reader() -> Database:
    """The database that the environment names, of any home: frames use no files.

    Raises:
        RegistryError: there is no home here.
        DatabaseError: the database cannot be used.
    """
    return Database.open(home_for_reading(), any_home=True)


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with the same types from both engines: aware times, `date` nights, booleans and nullable integers."""
    kinds = {column.name: column.type for table in METADATA.tables.values() for column in table.columns}
    kinds |= dict.fromkeys(("promoted_at", "ended_at"), UtcTime())
    kinds |= dict.fromkeys(("attempts", "model_version"), sa.Integer())
    for name in frame.columns:
        kind = kinds.get(name)
        if isinstance(kind, UtcTime):
            frame[name] = pd.to_datetime(frame[name], utc=True, format="ISO8601")
        elif isinstance(kind, sa.Date):
            values = frame[name].astype(object).where(frame[name].notna(), None)
            nights = [date.fromisoformat(value) if isinstance(value, str) else value for value in values]
            frame[name] = pd.Series(nights, index=frame.index, dtype=object)
        elif isinstance(kind, sa.Boolean):
            frame[name] = frame[name].astype(bool)
        elif isinstance(kind, sa.Integer):
            frame[name] = frame[name].astype("Int64")
    return frame
