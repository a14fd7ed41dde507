"""Logs of an evaluation harness, before and after compression."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys

import pytest

from nearzip.correctness import compare_answers
from nearzip.correctness.paired import BROKEN, KEPT, NOT_SHOWN
from nearzip.errors import CorruptError, LimitError, NotFoundError, UsageError

TIME = "2026-01-02T03-04-05.678901"


def line(i, right, *, metric="acc", best=None, task="arc", **fields):
    best = (2 if right else 1) if best is None else best
    return {
        "doc_id": i, "doc": {"query": f"{task} {i}"}, "target": "2", "arguments": {}, "resps": [],
        "filtered_resps": [[str(-1.0 if k == best else -4.0), "False"] for k in range(4)], "filter": "none",
        "metrics": [metric], "doc_hash": f"d{i}", "prompt_hash": f"p{i}", "target_hash": "t", metric: float(right),
        **fields,
    }  # fmt: skip


def write(folder, task, lines, time=TIME):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"samples_{task}_{time}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return path


def pair(tmp_path, n=1000, lost=3, gained=1, task="arc"):
    before = [i < n * 0.8 for i in range(n)]
    after = [not ok if i < lost or i >= n - gained else ok for i, ok in enumerate(before)]
    write(tmp_path / "base", task, [line(i, ok) for i, ok in enumerate(before)])
    write(tmp_path / "quantized", task, [line(i, ok) for i, ok in enumerate(after)])
    return tmp_path / "base", tmp_path / "quantized"


def test_counts_of_one_task(tmp_path):
    report = compare_answers(*pair(tmp_path), max_loss=0.02)
    [row] = report.tasks
    assert (row.n, row.flips.lost, row.flips.gained, row.flips.changed) == (1000, 3, 1, 0)
    assert (row.original, row.compressed, row.loss) == (0.8, 0.798, 0.002)
    assert (row.verdict, row.equivalent, report.verdict, report.all_tasks) == (KEPT, True, KEPT, None)
    document = json.loads(json.dumps(report.to_json()))
    path = tmp_path / "base" / f"samples_arc_{TIME}.jsonl"
    assert document["logs"]["arc"]["original"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert document["tasks"][0]["flips"]["p_mcnemar"] == pytest.approx(0.625)


def test_identical_answers_change_nothing_but_few_samples_show_little(tmp_path):
    before, after = pair(tmp_path, n=50, lost=0, gained=0)
    [row] = compare_answers(before, after, max_loss=0.02).tasks
    assert (row.loss, row.flips.churn, row.flips.p_mcnemar()) == (0.0, 0.0, 1.0)
    assert row.verdict == NOT_SHOWN
    assert row.samples_needed == 115  # 1.645 sqrt(2) / 0.02 - 2, rounded up


def test_three_verdicts_and_all_tasks_together(tmp_path):
    for task, lost in (("fine", 2), ("bad", 120), ("open", 16)):
        before, after = pair(tmp_path, lost=lost, task=task)
    report = compare_answers(before, after, max_loss={"*": 0.02})
    assert {row.task: row.verdict for row in report.tasks} == {"bad": BROKEN, "fine": KEPT, "open": NOT_SHOWN}
    assert report.verdict == BROKEN
    assert (report.all_tasks.n, report.all_tasks.flips.lost, report.all_tasks.flips.gained) == (3000, 138, 3)
    assert report.all_tasks.verdict == BROKEN


def test_holm_counts_the_tasks(tmp_path):
    """A loss that one task shows to be kept by itself is not shown beside thirty others of the same size."""
    before, after = pair(tmp_path, lost=12)
    assert compare_answers(before, after).verdict == KEPT
    for i in range(30):
        pair(tmp_path, lost=12, task=f"arc{i}")
    assert {row.verdict for row in compare_answers(before, after).tasks} == {NOT_SHOWN}


def test_wrong_to_another_wrong_answer_is_churn(tmp_path):
    write(tmp_path / "a", "t", [line(0, True), line(1, False, best=0), line(2, False, best=3)])
    write(tmp_path / "b", "t", [line(0, True), line(1, False, best=1), line(2, False, best=3)])
    flips = compare_answers(tmp_path / "a", tmp_path / "b").tasks[0].flips
    assert (flips.lost, flips.gained, flips.changed) == (0, 0, 1)
    assert flips.churn == pytest.approx(1 / 3)


def test_texts_and_filters(tmp_path):
    def both(i, strict, flexible, text):
        return [line(i, ok, metric="exact_match", filter=name, filtered_resps=[text])
                for name, ok in (("strict-match", strict), ("flexible-extract", flexible))]  # fmt: skip

    write(tmp_path / "a", "gsm8k", [*both(0, True, True, "4"), *both(1, False, True, "5"), *both(2, False, False, "6")])
    write(
        tmp_path / "b", "gsm8k", [*both(0, False, True, "4"), *both(1, False, True, "5"), *both(2, False, False, "7")]
    )
    first = compare_answers(tmp_path / "a", tmp_path / "b").tasks[0]
    assert (first.filter, first.flips.lost, first.flips.changed) == ("strict-match", 1, 1)
    other = compare_answers(tmp_path / "a", tmp_path / "b", metric="exact_match,flexible-extract").tasks[0]
    assert (other.filter, other.flips.lost) == ("flexible-extract", 0)
    with pytest.raises(UsageError, match="no filter 'loose'"):
        compare_answers(tmp_path / "a", tmp_path / "b", metric="exact_match,loose")


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("acc_nrom", "metric 'acc_nrom' is logged by no task"),
        ({"arc": "bleu"}, "there are acc"),
        ({"ark*": "acc"}, "the metric for 'ark\\*' matches no task; there are arc, mmlu"),
    ],
)
def test_a_metric_that_nobody_logs_is_refused(tmp_path, metric, says):
    """Judged by another metric, the answer would be to a question that nobody asked."""
    for name in ("a", "b"):
        write(tmp_path / name, "arc", [line(i, True) for i in range(9)])
        write(tmp_path / name, "mmlu", [line(i, True, metric="acc_norm") for i in range(9)])
    with pytest.raises(UsageError, match=says):
        compare_answers(tmp_path / "a", tmp_path / "b", metric=metric)
    found = compare_answers(tmp_path / "a", tmp_path / "b", metric="acc_norm")
    assert [row.metric for row in found.tasks] == ["acc", "acc_norm"]


def test_perplexities_are_weighed_by_length_and_rise_where_worse(tmp_path):
    lengths = [100 + 10 * i for i in range(40)]
    for name, factor in (("a", 2.0), ("b", 2.1)):
        write(tmp_path / name, "wikitext", [
            line(i, 0, metric="word_perplexity", word_perplexity=[-factor * n, n], filtered_resps=[f"{-factor * n}"])
            for i, n in enumerate(lengths)
        ])  # fmt: skip
    [row] = compare_answers(tmp_path / "a", tmp_path / "b", max_loss=0.2).tasks
    assert (row.original, row.compressed) == (pytest.approx(2.0), pytest.approx(2.1))
    assert row.loss == pytest.approx(0.1)  # nats per word
    assert row.flips is None


def test_scores_between_zero_and_one_and_directions(tmp_path):
    for name, value in (("a", 0.50), ("b", 0.52)):
        write(tmp_path / name, "t", [line(i, 0, metric="brier", brier=value + 0.001 * (i % 7)) for i in range(50)])
    [row] = compare_answers(tmp_path / "a", tmp_path / "b").tasks
    assert row.loss == pytest.approx(-0.02)
    results = {"higher_is_better": {"t": {"brier": False}}}
    (tmp_path / "a" / f"results_{TIME}.json").write_text(json.dumps(results))
    assert compare_answers(tmp_path / "a", tmp_path / "b").tasks[0].loss == pytest.approx(0.02)


def test_the_newest_log_of_a_task_counts_and_gzip_is_read(tmp_path):
    before, after = pair(tmp_path)
    old = write(after, "arc", [line(0, False)], time="2025-01-01T00-00-00.0")
    assert compare_answers(before, after).tasks[0].n == 1000
    old.unlink()
    [plain] = after.glob("*.jsonl")
    (after / (plain.name + ".gz")).write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert compare_answers(before, after).tasks[0].flips.lost == 3


def test_limits_by_pattern(tmp_path):
    for task in ("mmlu_law", "mmlu_art", "arc"):
        before, after = pair(tmp_path, task=task)
    report = compare_answers(before, after, max_loss={"*": 0.01, "mmlu_*": 0.03, "mmlu_art": 0.05})
    assert {row.task: row.test.limit for row in report.tasks} == {"arc": 0.01, "mmlu_law": 0.03, "mmlu_art": 0.05}
    with pytest.raises(UsageError, match="matches no task"):
        compare_answers(before, after, max_loss={"*": 0.01, "hellaswag": 0.02})
    with pytest.raises(UsageError, match="no limit matches task 'arc'"):
        compare_answers(before, after, max_loss={"mmlu_*": 0.01})


@pytest.mark.parametrize("limit", [0, -0.1, float("nan"), float("inf"), True, "x"])
def test_a_limit_is_a_positive_number(tmp_path, limit):
    with pytest.raises(UsageError, match="a limit is a positive number"):
        compare_answers(*pair(tmp_path, n=5, lost=0, gained=0), max_loss=limit)


# ---- bad input: one clear line each ------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0, 1, "0.95", True, float("nan")])
def test_a_confidence_is_a_probability(tmp_path, confidence):
    with pytest.raises(UsageError, match="confidence is a probability"):
        compare_answers(*pair(tmp_path), confidence=confidence)


def test_logs_of_different_samples(tmp_path):
    before, after = pair(tmp_path, n=20)
    write(after, "arc", [line(i, True) for i in range(19)])
    with pytest.raises(UsageError, match="different samples: 1 documents are in only one, the first is 19"):
        compare_answers(before, after)
    write(after, "arc", [line(i, True, doc_hash="other" if i == 7 else f"d{i}") for i in range(20)])
    with pytest.raises(UsageError, match="document 7 is not the same question"):
        compare_answers(before, after)


def test_without_the_harnesss_hashes_documents_are_compared_themselves(tmp_path):
    rows = [line(i, True) for i in range(5)]
    for row in rows:
        del row["doc_hash"], row["target_hash"]
    write(tmp_path / "a", "t", rows)
    rows[3] = {**rows[3], "target": "3"}
    write(tmp_path / "b", "t", rows)
    with pytest.raises(UsageError, match="document 3 is not the same question"):
        compare_answers(tmp_path / "a", tmp_path / "b")


def test_other_prompts_are_noted(tmp_path):
    write(tmp_path / "a", "t", [line(i, True) for i in range(5)])
    write(tmp_path / "b", "t", [line(i, True, prompt_hash="chat") for i in range(5)])
    assert compare_answers(tmp_path / "a", tmp_path / "b").notes == ("task 't': 5 of 5 prompts differ",)


@pytest.mark.parametrize(("content", "error", "text"), [
    ("", CorruptError, "is empty"),
    ("{not json}\n", CorruptError, "line 1: is not JSON"),
    ("[1, 2]\n", CorruptError, "line 1: is no logged sample"),
    ("[" * 100_000 + "\n", CorruptError, "line 1: is not JSON"),
    (json.dumps(line(0, True)) * 1 + "\n" + json.dumps(line(0, True)) + "\n", CorruptError, "is logged twice"),
    (json.dumps(line(0, True, acc=float("nan"))) + "\n", CorruptError, "metric 'acc' is nan"),
    (json.dumps(line(0, True, acc=[-3.0, 0])) + "\n", CorruptError, "a length positive"),
])  # fmt: skip
def test_damaged_logs_are_named(tmp_path, content, error, text):
    before, after = pair(tmp_path, n=1, lost=0, gained=0)
    path = after / f"samples_arc_{TIME}.jsonl"
    path.write_text(content)
    with pytest.raises(error, match=text) as raised:
        compare_answers(before, after)
    assert str(path) in str(raised.value)


def test_a_line_without_an_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("nearzip.correctness.logs._MAX_LINE", 100)
    with pytest.raises(LimitError, match="has a line of more than"):
        compare_answers(*pair(tmp_path, n=5, lost=0, gained=0))


def test_a_cut_gzip_file_is_named(tmp_path):
    before, after = pair(tmp_path)
    [plain] = after.glob("*.jsonl")
    (after / (plain.name + ".gz")).write_bytes(gzip.compress(plain.read_bytes())[:-20])
    plain.unlink()
    with pytest.raises(CorruptError, match="is no intact gzip file"):
        compare_answers(before, after)


def test_folders_without_logs_and_with_several_networks(tmp_path):
    before, after = pair(tmp_path)
    with pytest.raises(NotFoundError, match="no such file"):
        compare_answers(before, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="--log_samples"):
        compare_answers(before, tmp_path / "empty")
    with pytest.raises(UsageError, match="name the folder of one network"):
        compare_answers(tmp_path, after)


def test_no_task_in_common(tmp_path):
    write(tmp_path / "a", "one", [line(0, True)])
    write(tmp_path / "b", "two", [line(0, True)])
    with pytest.raises(UsageError, match="no task in common"):
        compare_answers(tmp_path / "a", tmp_path / "b")


# ---- the command and the page ------------------------------------------------------------------------------------


def run(*arguments):
    command = [sys.executable, "-m", "nearzip", "certify", "--answers", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("lost", "code", "word"), [(2, 0, "Kept"), (16, 1, "Not shown"), (120, 15, "Broken")])
def test_exit_codes(tmp_path, lost, code, word):
    done = run(*pair(tmp_path, lost=lost), "--limit", "0.02")
    assert done.returncode == code, done.stderr
    assert word in done.stdout


def test_json_files_and_overwriting(tmp_path):
    folders = pair(tmp_path)
    output = tmp_path / "answers.json"
    done = run(*folders, "--json", "-o", output)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["message_type"], document["command"], document["verdict"]) == ("summary", "certify", "kept")
    assert json.loads(output.read_text())["tasks"] == document["tasks"]
    assert run(*folders, "-o", output).returncode == 2
    assert run(*folders, "-o", output, "--force").returncode == 0


def test_answers_are_compared_without_torch(tmp_path):
    before, after = pair(tmp_path, n=10, lost=0, gained=0)
    code = (
        "import sys; from nearzip.correctness import compare_answers; "
        f"compare_answers({str(before)!r}, {str(after)!r}); raise SystemExit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_page_is_self_contained_and_escapes_names(tmp_path):
    pytest.importorskip("jinja2")
    evil = "<script>alert(1)<.script>"
    for task in (evil, "fine"):
        before, after = pair(tmp_path, lost=16, task=task)
    compare_answers(before, after).page(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
    assert "Not shown" in text
