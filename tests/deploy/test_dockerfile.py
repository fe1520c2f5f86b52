"""deploy/Dockerfile, read: what it copies is there and let through, what it runs exists, and it pins nothing itself."""

from __future__ import annotations

import fnmatch
import re
import shlex
import tomllib

from tests.deploy.recorded import ROOT

TEXT = (ROOT / "deploy/Dockerfile").read_text()
LINES = [line for line in re.sub(r"\\\n\s*", " ", TEXT).splitlines() if line and not line.startswith("#")]


def stages() -> dict[str, list[tuple[str, str]]]:
    """(instruction, rest) of each line, by the stage's name."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in LINES:
        instruction, rest = line.split(" ", 1)
        if instruction == "FROM":
            image, word, name = rest.split()
            assert word == "AS" and re.fullmatch(r"[\w./-]+:[\w.-]+", image) and not image.endswith(":latest")
            found[name] = []
        else:
            found[name].append((instruction, rest))
    return found


def copied(stage: list[tuple[str, str]]) -> set[str]:
    return {source for name, rest in stage if name == "COPY" for source in rest.split()[:-1]}


def test_there_is_an_image_for_gpus_and_one_for_cpus() -> None:
    assert list(stages()) == ["gpu", "cpu"]
    assert {name for stage in stages().values() for name, _ in stage} <= {"ENV", "RUN", "COPY", "WORKDIR", "CMD"}


def test_what_is_copied_exists_and_is_let_through() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    for stage in stages().values():
        for source in copied(stage):
            assert (ROOT / source).exists(), source
            assert f"!{source}" in rules, source
            assert not [rule for rule in rules[1:] if fnmatch.fnmatch(source, rule)]
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied(stages()["gpu"])


def test_what_runs_was_copied_before_and_every_package_with_it() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    for name, script in (("gpu", "deploy/setup_cuda.sh"), ("cpu", "deploy/setup.sh")):
        stage = stages()[name]
        where = next(index for index, (_, rest) in enumerate(stage) if f"bash {script}" in rest)
        before = copied(stage[:where])
        assert {package.split(".")[0] for package in packages} <= before
        needed = re.findall(
            r"(?<![\w/.])((?:requirements|deploy)/[\w.-]*\w|pyproject\.toml)", (ROOT / script).read_text()
        )
        assert len(needed) > 3
        for path in needed:
            assert (ROOT / path).exists() and path.split("/")[0] in before, path


def test_python_packages_come_from_the_pins_alone() -> None:
    for stage in stages().values():
        words = [word for name, rest in stage if name == "RUN" for word in shlex.split(rest)]
        assert not {"pip", "pip3", "uv"} & set(words)


def test_the_compiler_is_of_the_cuda_that_torch_is_built_with() -> None:
    (cuda,) = re.findall(r"^FROM nvidia/cuda:(\d+\.\d+)", TEXT, re.M)
    assert "torch==2.13.0" in (ROOT / "requirements/cuda.txt").read_text()  # another torch: look up its CUDA
    assert cuda == "13.0"


def test_what_ray_needs_in_an_image_is_there() -> None:
    for stage in stages().values():
        words = {word for name, rest in stage if name == "RUN" for word in shlex.split(rest)}
        assert {"rsync", "wget"} <= words
        assert ("WORKDIR", "/root/disaggregated-rloo") in stage
