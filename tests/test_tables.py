"""Tables on narrow terminals: every number whole, every name readable."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import nearzip as nz
from nearzip.cli import cli
from nearzip.cli.tables import Rows, cut, is_unicode, printed, width_of

COLUMNS = {"tensor": "left", "dtype": "left", "values": "right", "a long heading": "right", "how": "left"}
NAMES = [f"model.language_model.layers.{i}.self_attn.{p}_proj.weight_orig" for i in (3, 31) for p in "qk"]
ROWS = [[name, "float32", "16,777,216", "0.5", "one way"] for name in NAMES] + [["b", "bfloat16", "-1", "", "another"]]


def test_as_wide_as_needed_where_nobody_limits_it():
    lines = Rows(COLUMNS, ROWS).text(None).splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert all(name in line for name, line in zip(NAMES, lines[2:], strict=False))
    assert len({line.index("0.5") for line in lines[2:6]}) == 1


@pytest.mark.parametrize("width", [80, 60, 56])
def test_long_names_have_their_own_lines_and_numbers_are_whole(width):
    lines = Rows(COLUMNS, ROWS).text(width).splitlines()
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    assert text.count("16,777,216") == len(NAMES)
    if width >= 60:
        assert all(name in text for name in NAMES)
    assert next(line for line in lines if line.startswith("b ")).split() == ["b", "bfloat16", "-1", "another"]


def test_numbers_are_whole_even_on_a_terminal_that_is_too_narrow():
    text = Rows(COLUMNS, ROWS).text(10)
    assert text.count("16,777,216") == len(NAMES)


@pytest.mark.parametrize("unicode", [False, True])
def test_texts_are_cut_in_the_middle(unicode):
    text = Rows({"setting": "left", "bytes": "right"}, [["x" * 30 + "y" * 30, "123"]]).text(30, unicode)
    dots = "\N{HORIZONTAL ELLIPSIS}" if unicode else "..."
    assert re.search(rf"^x+{re.escape(dots)}y+$", text, re.MULTILINE)
    assert text.isascii() != unicode
    assert [cut("abcdef", n, "...") for n in (0, 2, 3, 4, 6)] == ["", "..", "...", "a...", "abcdef"]


def test_wide_characters_count_twice():
    lines = Rows({"name": "left", "n": "right"}, [["\N{CJK UNIFIED IDEOGRAPH-6A21}" * 4, "12"], ["w", "3"]]).text(80)
    first, second = lines.splitlines()[2:]
    assert len(first) + 4 == len(second)
    assert len(cut("\N{CJK UNIFIED IDEOGRAPH-6A21}" * 10, 11, ".")) <= 6


def test_pipes_are_not_limited_and_other_encodings_get_ascii(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    stream = io.TextIOWrapper(io.BytesIO(), "cp1252")
    assert width_of(stream) is None
    assert not is_unicode(stream)
    monkeypatch.setenv("COLUMNS", "50")
    assert width_of(stream) == 50
    monkeypatch.setattr("sys.stdout", stream)
    assert printed(Rows(COLUMNS, ROWS)).isascii()


def test_inspect_and_compare_on_a_narrow_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    old = {name: rng.normal(size=(300, 100)).astype("f4") for name in NAMES}
    old["lm_head.weight"] = old[NAMES[0]]
    new = {name: array + np.float32(1e-3) for name, array in old.items()}
    save_file(old, "old.safetensors")
    save_file(new, "new.safetensors")
    nz.compress_file("old.safetensors", "a.nz")
    for arguments in (("inspect", "a.nz"), ("compare", "old.safetensors", "new.safetensors")):
        monkeypatch.setenv("COLUMNS", "80")
        text = CliRunner().invoke(cli, arguments).output
        table = text.split("\n\n")[1]
        assert all(len(line) <= 80 for line in table.splitlines())
        assert all(name in table for name in NAMES)
        assert table.count("300x100" if arguments[0] == "inspect" else "30,000") == 5
        monkeypatch.setenv("COLUMNS", "400")
        wide = CliRunner().invoke(cli, arguments).output.split("\n\n")[1]
        # The same words: nothing is cut or left out.
        rule = "\N{BOX DRAWINGS LIGHT HORIZONTAL}"
        assert wide.replace(rule, "").split() == table.replace(rule, "").split()
    assert "2: same as lm_head.weight" in CliRunner().invoke(cli, ["inspect", "a.nz"]).output
