# SPDX-License-Identifier: Apache-2.0
"""Tables, documents, and what a hostile server cannot do to a terminal."""

import json

import pytest
import yaml
from rich.text import Text

from pycloud.cli.output import Column, Format, Printer, field, size_text, span_text, text_of

COLUMNS = (field("id", "id"), Column("double", lambda item: item["n"] * 2))
ITEMS = [{"id": "first", "n": 1}, {"id": "é", "n": 20}]
ESCAPE = "\x1b[2J\x1b]0;owned\x07"


def test_table_has_a_head_and_aligned_columns(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(Format.TABLE).items(ITEMS, COLUMNS, empty="none")

    assert capsys.readouterr().out == "ID     DOUBLE\nfirst  2\né      40\n"


def test_long_cells_are_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 500

    Printer(Format.TABLE).items([{"id": long, "n": 1}], COLUMNS, empty="none")

    assert long in capsys.readouterr().out


def test_empty_list_is_a_remark_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(Format.TABLE).items([], COLUMNS, empty="nothing there")

    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "nothing there\n")


@pytest.mark.parametrize(
    ("form", "read"), [(Format.JSON, json.loads), (Format.YAML, yaml.safe_load)]
)
def test_documents_hold_everything(capsys: pytest.CaptureFixture[str], form: Format, read) -> None:
    Printer(form).items(ITEMS, COLUMNS, empty="none")

    assert read(capsys.readouterr().out) == ITEMS


def test_empty_list_is_a_document_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(Format.JSON).items([], COLUMNS, empty="none")

    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("form", list(Format))
def test_output_steers_no_terminal(capsys: pytest.CaptureFixture[str], form: Format) -> None:
    hostile = {"id": f"a{ESCAPE}\x9b31m", "n": 1}

    Printer(form).items([hostile], COLUMNS, empty="none")
    Printer(form).item(hostile, COLUMNS)
    Printer(form).done(f"done {ESCAPE}", hostile)

    out = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b"} & set(out)


def test_json_keeps_characters_that_it_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": "\x1b\x9b\u202e plain é"}

    Printer(Format.JSON).document(value)

    assert json.loads(capsys.readouterr().out) == value


def test_result_of_a_change_is_a_sentence_or_the_document(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Printer(Format.TABLE).done("it was added", {"id": "a"})
    Printer(Format.JSON).done("it was added", {"id": "a"})

    sentence, _, document = capsys.readouterr().out.partition("\n")
    assert (sentence, json.loads(document)) == ("it was added", {"id": "a"})


def test_markup_in_data_is_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(Format.TABLE).items([{"id": "[red]x[/red] :smile:", "n": 1}], COLUMNS, empty="")

    assert "[red]x[/red] :smile:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        ("", "-"),
        (True, "yes"),
        (False, "no"),
        (1.50, "1.5"),
        ([], "-"),
        (["a", 1], "a, 1"),
        ({"k": "v"}, "k=v"),
        (0, "0"),
        (Text("styled"), "styled"),
    ],
)
def test_values_read_well_in_a_table(value: object, shown: str) -> None:
    assert text_of(value).plain == shown


@pytest.mark.parametrize(
    ("span_s", "shown"),
    [(None, ""), (0, "0 s"), (99, "99 s"), (100, "2 min"), (5400, "90 min"), (9000, "2 h")],
)
def test_spans_have_a_fitting_unit(span_s: int | None, shown: str) -> None:
    assert span_text(span_s) == shown


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 50, "3072.0 TiB"),
    ],
)
def test_sizes_have_a_fitting_unit(size_bytes: int, shown: str) -> None:
    assert size_text(size_bytes) == shown
