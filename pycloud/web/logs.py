# SPDX-License-Identifier: Apache-2.0
"""Log lines: an event name and its fields, for people or for machines.

A field is whatever a caller passed as `extra`. Called once by the program that
owns the process; a library or a test never sets logging up.
"""

import json
import logging
from datetime import UTC, datetime

from pycloud.settings import Settings
from pycloud.web.request import current_request_id

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up_logging(settings: Settings) -> None:
    """Send every log line to standard error in the format of the settings."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    # It warns at every request that has to queue, which is what queues are for.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return what the caller passed as `extra`, and the request that was worked on."""
    fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    request_id = current_request_id.get()
    if request_id != "-":
        fields.setdefault("request_id", request_id)
    return fields


class TextLines(logging.Formatter):
    """One line for people: time, level, logger, event, fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it if there is one."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = " ".join(f"{name}={_text(value)}" for name, value in fields_of(record).items())
        event = _one_line(record.getMessage())
        line = f"{moment} {record.levelname:<7} {record.name}: {event} {fields}".rstrip()
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonLines(logging.Formatter):
    """One JSON object per line, for machines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        content: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)


def _text(value: object) -> str:
    text = _one_line(str(value))
    return json.dumps(text) if " " in text or '"' in text or not text else text


def _one_line(text: str) -> str:
    """Keep what came from outside from writing lines of its own."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
