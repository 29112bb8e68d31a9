"""What the result of a night depends on: each input that changes is named, and nothing else counts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from nightgate import provenance
from nightgate.config.pipeline import Pipeline
from nightgate.home import Home
from nightgate.pipeline_files import check_pipeline
from nightgate.runs import inputs as module
from nightgate.runs.inputs import changed, inputs
from tests.support.hub_server import COMMIT, TOKEN, hub_server


class Site:
    """A pipeline with a base model in a folder and a golden file, whose parts the tests change."""

    def __init__(self, folder: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base, self.golden, self.home, self.patch = folder / "base", folder / "golden.csv", home, monkeypatch
        self.base.mkdir()
        for name in ("config.json", "tokenizer.json", "sentencepiece.bpe.model", "model.safetensors", "README.md"):
            (self.base / name).write_text(f"content of {name}")
        self.golden.write_text("text,label\nfine,good\n")
        self.settings: dict[str, Any] = {}
        self.snapshot, self.spread = "s-1", None

    def write(self, path: str, content: str = "other") -> None:
        (self.base / path).write_text(content)

    def rewrite_in_place(self) -> None:
        """Other weights of the same size, with the times of the old ones."""
        path = self.base / "model.safetensors"
        facts = path.stat()
        path.write_text(path.read_text().upper())
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    def replace_folder(self) -> None:
        """As a link that is turned to another release."""
        self.base.rename(self.base.with_name("old"))
        shutil.copytree(self.base.with_name("old"), self.base.with_name("new"))
        (self.base.with_name("new") / "config.json").write_text("another release")
        self.base.symlink_to(self.base.with_name("new"))

    def install(self, library: str) -> None:
        known = provenance.library_versions()
        self.patch.setattr(module, "library_versions", lambda: known | {library: "99.0"})

    def inputs(self) -> dict[str, str]:
        return inputs(self.pipeline(), self.home, self.snapshot, self.spread)

    def pipeline(self) -> Pipeline:
        data = {"source": {"kind": "sample"}, "labels": ["bad", "good"], "golden": str(self.golden)}
        document = {"name": "reviews", "data": data, "training": {"base_model": str(self.base)}}
        return check_pipeline(document, "reviews.toml", self.settings)


@pytest.fixture
def site(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, home, monkeypatch)


CHANGES: dict[str, tuple[str, Callable[[Site], object]]] = {
    "rows": ("snapshot", lambda site: setattr(site, "snapshot", "s-2")),
    "the recipe": ("configuration", lambda site: site.settings.update({"training.learning_rate": 1e-4})),
    "the split": ("configuration", lambda site: site.settings.update({"split.seed": 7})),
    "what labels mean": (
        "configuration",
        lambda site: site.settings.update({"data.labels": {"bad": "good", "good": "bad"}}),
    ),
    "the policy": ("configuration", lambda site: site.settings.update({"gate.policy": "non_inferior"})),
    "the need for an approval": ("approval", lambda site: site.settings.update({"gate.approval": True})),
    "the code": ("code", lambda site: site.patch.setattr(module, "code_version", lambda: "9.9+newer")),
    "the weights": ("base model", lambda site: site.write("model.safetensors")),
    "weights of the same size and time": ("base model", Site.rewrite_in_place),
    "a part of the weights": ("base model", lambda site: site.write("model-00002-of-00002.safetensors")),
    "older weights": ("base model", lambda site: site.write("pytorch_model.bin")),
    "the model's configuration": ("base model", lambda site: site.write("config.json")),
    "the tokenizer": ("base model", lambda site: site.write("tokenizer.json")),
    "the vocabulary": ("base model", lambda site: site.write("sentencepiece.bpe.model")),
    "the folder behind a link": ("base model", Site.replace_folder),
    "a folder that is gone": ("base model", lambda site: shutil.rmtree(site.base)),
    "a link to weights that are gone": (
        "base model",
        lambda site: (site.base / "more.safetensors").symlink_to(site.base / "gone"),
    ),
    "the golden file": ("golden file", lambda site: site.golden.write_text("text,label\nfine,bad\n")),
    "a golden file that is gone": ("golden file", lambda site: site.golden.unlink()),
    "the spread between seeds": ("seed spread", lambda site: setattr(site, "spread", 0.004)),
    "the number of processes": ("processes", lambda site: site.patch.setenv("NIGHTGATE_PROCESSES", "2")),
    "CUDA graphs": ("CUDA graphs", lambda site: site.patch.setenv("NIGHTGATE_CUDA_GRAPHS", "1")),
    "Python": ("Python", lambda site: site.patch.setattr(module.platform, "python_version", lambda: "3.99.0")),
    **{
        name: (name, lambda site, name=name: site.install(name))  # type: ignore[misc]
        for name in ("torch", "transformers", "tokenizers", "safetensors", "numpy")
    },
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_input_that_changes_is_named_alone(site: Site, what: str) -> None:
    name, change = CHANGES[what]
    before = site.inputs()
    change(site)
    now = site.inputs()
    assert changed(before, now) == [f"{name} was {before.get(name, 'none')} and is {now.get(name, 'none')}"]


@pytest.mark.parametrize(
    "change",
    [
        Site.inputs,
        lambda site: (site.base / "README.md").write_text("another page"),
        lambda site: (site.base / "model.safetensors").touch(),
        lambda site: (site.home.root / "base-models.json").write_text("damaged"),
        lambda site: site.settings.update({"schedule.cron": "30 4 * * *", "retention.models": 3}),
        lambda site: site.install("datasets"),
    ],
)
def test_nothing_else_counts(site: Site, change: Callable[[Site], object]) -> None:
    before = site.inputs()
    change(site)
    assert changed(before, site.inputs()) == []


def test_weights_are_read_again_only_where_the_file_was_written(site: Site) -> None:
    read: list[str] = []
    sha256_of = module.sha256_of
    site.patch.setattr(module, "sha256_of", lambda path: read.append(path.name) or sha256_of(path))
    site.inputs()
    assert {"model.safetensors", "config.json"} <= set(read)
    read.clear()
    site.inputs()
    assert read == ["golden.csv"]
    site.write("config.json")
    site.inputs()
    assert read == ["golden.csv", "config.json", "golden.csv"]


def test_a_name_of_the_hub_counts_by_the_commit_that_it_stands_for(site: Site) -> None:
    cached = Path(constants.HF_HUB_CACHE) / "models--someone--moving"
    for commit in (COMMIT, COMMIT[::-1]):
        (cached / "snapshots" / commit).mkdir(parents=True)
        (cached / "snapshots" / commit / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    site.settings = {"training.base_model": "someone/moving"}
    before = site.inputs()
    assert before["base model"] == COMMIT
    # The hub is away in tests: what was downloaded last counts.
    (cached / "refs" / "main").write_text(COMMIT[::-1])
    assert changed(before, site.inputs()) == [f"base model was {COMMIT} and is {COMMIT[::-1]}"]
    site.settings["training.base_model_revision"] = COMMIT
    assert site.inputs()["base model"] == COMMIT


def test_the_hub_is_asked_for_the_newest_commit(site: Site, tmp_path: Path) -> None:
    with hub_server(tmp_path / "hub") as hub:
        hub.visibility = "public"
        site.patch.setattr(constants, "HF_HUB_OFFLINE", False)
        site.patch.setattr(constants, "ENDPOINT", hub.url)
        site.patch.setenv("HF_TOKEN", TOKEN)
        site.settings = {"training.base_model": "someone/else"}
        assert site.inputs()["base model"] == COMMIT
