"""`retort doctor` prints what was found and ends with what it means."""

from __future__ import annotations

import dataclasses
import json

import pytest
from click.testing import CliRunner

from retort.cli import doctor as module
from retort.cli.doctor import doctor
from retort.sandbox.probe import HostFacts, advice
from retort.sandbox.session_group import Mode

FACTS = HostFacts(
    is_root=False,
    bwrap_path="/usr/bin/bwrap",
    bwrap_version=(0, 8, 0),
    sandbox_problem=None,
    kernel_release="6.1.0",
    has_openat2=True,
    has_pidfd=True,
    has_seccomp=True,
    has_libseccomp=False,
    has_overlayfs=True,
    landlock_abi=3,
    cgroup_mode=Mode.V2,
    cgroup_controllers=("memory", "pids"),
    memory_bytes=2**30,
    cores=2,
    tools={"bash": "/bin/bash"},
    core_pattern="core",
    settings={},
)


@pytest.fixture
def found(monkeypatch):
    """Make the doctor find given facts."""

    def give(**changes):
        facts = dataclasses.replace(FACTS, **changes)
        monkeypatch.setattr(module, "host_facts", lambda: (facts, advice(facts)))

    return give


def test_a_host_that_can_sandbox_is_exit_code_0(found) -> None:
    found()
    done = CliRunner().invoke(doctor)
    assert done.exit_code == 0
    assert "Sandboxes can be made here." in done.output


def test_a_missing_wall_is_shown_with_its_command_and_exit_code_1(found) -> None:
    found(bwrap_path=None, bwrap_version=(), sandbox_problem="not installed")
    done = CliRunner().invoke(doctor)
    assert done.exit_code == 1
    assert "$ apt-get install bubblewrap" in done.output
    assert "cannot be made" in done.output


def test_the_same_as_json(found) -> None:
    found()
    done = CliRunner().invoke(doctor, ["--json"])
    report = json.loads(done.output)
    assert report["canSandbox"] is True
    assert report["facts"]["cgroup_mode"] == "v2"
    states = {finding["wall"]: finding["state"] for finding in report["findings"]}
    assert states["seccomp"] == states["cpu limit"] == "missing"
    assert states["memory limit"] == "enforced"
    assert states["network"] == "enforced"


def test_a_state_folder_that_is_a_file_is_a_problem(found, tmp_path) -> None:
    found()
    (tmp_path / "file").touch()
    done = CliRunner().invoke(doctor, ["--state", str(tmp_path / "file" / "x"), "--json"])
    assert done.exit_code == 1
    assert "not a folder" in json.loads(done.output)["stateProblem"]
    done = CliRunner().invoke(doctor, ["--state", str(tmp_path / "new" / "x")])
    assert done.exit_code == 0
