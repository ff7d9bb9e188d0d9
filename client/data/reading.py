"""Reading a hospital's own file, whatever it is."""

from pathlib import Path

from client.data import images, long, tables
from client.data.report import Draft
from client.data.schema import DataMapping, Imported
from common.errors import DataError
from common.tasks.task import Task


def read(source: Path, task: Task, mapping: DataMapping) -> Imported:
    """Read a table; where the task learns from images, a folder or a table of them; where from series or lists of codes, a folder of tables.

    Every problem stands in the result's report, whose ``check`` raises where the file is refused; then there are no records. Messages name row and column
    and never hold what stands there.
    """
    draft = Draft(source.name)
    try:
        if any(column.kind == "image" for column in task.columns):
            return images.read(source, task, mapping, draft)
        if long.columns_of(task) and (source.is_dir() or any(column.kind == "series" for column in task.columns)):
            return long.read(source, task, mapping, draft)
        return tables.read(source, task, mapping, draft)
    except DataError as error:
        draft.whole("unreadable file", str(error))
        return Imported(draft.report(drop=False))
