# SPDX-License-Identifier: Apache-2.0
"""Log lines carry their fields, one line each, whatever is in them."""

import json
import logging

from pycloud.web.logs import JsonLines, TextLines
from pycloud.web.request import current_request_id


def record(message: str = "event", **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("pycloud.x", logging.INFO, "f", 1, message, (), None)
    vars(made).update(extra)
    return made


def test_text_line_shows_event_and_fields() -> None:
    line = TextLines().format(record(job_id="j", reason="no room"))
    assert line.endswith('INFO    pycloud.x: event job_id=j reason="no room"')


def test_text_line_stays_one_line_whatever_came_from_outside() -> None:
    line = TextLines().format(record(path="/a\nERROR forged \x1b[31m"))
    assert "\n" not in line
    assert "\x1b" not in line


def test_json_line_is_an_object_with_the_request() -> None:
    mark = current_request_id.set("r1")
    try:
        line = JsonLines().format(record(job_id="j"))
    finally:
        current_request_id.reset(mark)
    content = json.loads(line)
    assert (content["event"], content["job_id"], content["request_id"]) == ("event", "j", "r1")
