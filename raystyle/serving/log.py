"""The log: a JSON object a line, whatever is told.

Requests are told by `access`, on a logger of their own and as JSON already. Whatever else this package tells, a warning or the
traceback of a fault, becomes an object with `level`, `logger`, `message` and, where there is one, `exc`.
"""

import json
import logging

REQUESTS = logging.getLogger("raystyle.serving")


class JSONLines(logging.Formatter):
    """One line for each record, also where its message or traceback has several."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == REQUESTS.name:
            return record.getMessage()
        told = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            told["exc"] = self.formatException(record.exc_info)
        return json.dumps(told)
