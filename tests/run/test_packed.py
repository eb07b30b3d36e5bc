"""A study's runs in one file: nothing measured is lost, the same bytes every time, read as if loose."""
import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
from runs import ROOT

from base.errors import UserError
from run.packed import PACK, main, measured, pack, unpacked


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "study"
    for run in ("a/seed_1", "a/seed_2", "b"):
        (folder / run).mkdir(parents=True)
        (folder / run / "metrics.jsonl").write_text(f'{{"event": "eval", "run": "{run}"}}\n')
        (folder / run / "config.json").write_text(json.dumps(
            dict(out_dir=f"/home/me/{run}", data_dir="/home/me/data/mine", init_from="/home/me/x/ckpt.pt", resolved=dict(data_dir="/home/me"))))
        for name in ("ckpt_0000010.pt", "log.txt", "run.txt"):
            (folder / run / name).write_text("large")
    (folder / "report.json").write_text("{}")
    return folder


def test_nothing_is_lost_and_the_bytes_are_the_same(folder):
    had = measured(folder)
    assert pack(folder) == 3 and len(had) == 6
    first = (folder / PACK).read_bytes()
    os.utime(folder / "b" / "metrics.jsonl", (1, 1))
    pack(folder)
    assert (folder / PACK).read_bytes() == first
    for run in ("a", "b"):
        shutil.rmtree(folder / run)
    assert unpacked(str(folder / "b")) == str(folder / "b")  # a run's path will do
    assert measured(folder) == had


def test_runs_are_added_to_a_pack_and_none_is_overwritten(folder):
    pack(folder)
    shutil.rmtree(folder / "a")
    (folder / "b" / "metrics.jsonl").write_text("longer\n")
    shutil.copytree(folder / "b", folder / "c")
    assert pack(folder) == 4
    with tarfile.open(folder / PACK) as tar:
        assert tar.extractfile("b/metrics.jsonl").read() == b"longer\n"


def test_a_study_is_not_copied_into_itself(folder, monkeypatch, capsys):
    had = measured(folder)
    monkeypatch.setattr(sys, "argv", ["packed", str(folder), f"{folder}/../study"])
    with pytest.raises(SystemExit) as e:
        main()
    assert e.value.code == 2 and "own folder" in capsys.readouterr().err and measured(folder) == had


def test_another_study_is_not_written_over(folder, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other"
    (other / "b").mkdir(parents=True)
    (other / "b" / "metrics.jsonl").write_text("another\n")
    monkeypatch.setattr(sys, "argv", ["packed", str(folder), str(other)])
    with pytest.raises(SystemExit):
        main()
    assert "another b/metrics.jsonl" in capsys.readouterr().err and os.listdir(other) == ["b"]


def test_a_finished_study_is_copied_without_this_machines_folders(folder, tmp_path, monkeypatch, capsys):
    into = tmp_path / "results"
    start = '{"event": "start", "torch": "2", "data_dir": "/home/me/data", "threads": 1}\n'
    (folder / "a" / "seed_1" / "metrics.jsonl").write_text(start)
    monkeypatch.setattr(sys, "argv", ["packed", str(folder), str(into)])
    main()
    assert "3 runs" in capsys.readouterr().out and (into / "report.json").exists()
    config = json.loads((into / "a" / "seed_1" / "config.json").read_text())
    assert (into / "a" / "seed_1" / "metrics.jsonl").read_text() == start.replace(', "data_dir": "/home/me/data"', "")
    assert config == dict(out_dir="seed_1", data_dir="mine", init_from="ckpt.pt", resolved={})
    assert (folder / "b" / "ckpt_0000010.pt").exists() and not list(into.rglob("*.pt"))


def test_bad_packs(folder, tmp_path):
    with pytest.raises(UserError, match="no runs in it"):
        pack(tmp_path / "study" / "b")
    pack(folder)
    shutil.rmtree(folder / "b")
    whole = (folder / PACK).read_bytes()
    for damaged in (whole[:len(whole) // 2], b"nothing"):
        (folder / PACK).write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            unpacked(folder)
    with tarfile.open(folder / PACK, "w:xz") as tar:
        tar.addfile(tarfile.TarInfo("../../x.json"))
    with pytest.raises(UserError, match="lies outside"):
        unpacked(folder)


def test_results_are_packed():
    found = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not found:
        pytest.skip("no git here")
    assert len(found) <= 120
    assert not [name for name in found if name.endswith(("metrics.jsonl", "config.json"))]
