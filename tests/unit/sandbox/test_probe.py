"""What the probe finds here, and the advice for hosts that are worse off."""

from __future__ import annotations

import dataclasses
import os

import pytest

from retort.sandbox import probe as module
from retort.sandbox.probe import (
    Finding,
    HostFacts,
    State,
    advice,
    bwrap_version,
    probe,
    with_groups,
)
from retort.sandbox.session_group import Mode


@pytest.fixture(scope="module")
def facts() -> HostFacts:
    """A host where all is well."""
    return HostFacts(
        is_root=True,
        bwrap_path="/usr/bin/bwrap",
        bwrap_version=(0, 8, 0),
        sandbox_problem=None,
        kernel_release="6.1.0",
        has_openat2=True,
        has_pidfd=True,
        has_seccomp=True,
        has_libseccomp=True,
        has_overlayfs=True,
        landlock_abi=3,
        cgroup_mode=Mode.V2,
        cgroup_controllers=("cpu", "cpuacct", "memory", "pids"),
        inode_problem=None,
        memory_bytes=2**30,
        cores=2,
        tools=dict.fromkeys(module.TOOLS, "/usr/bin/x"),
        core_pattern="core",
        settings={},
    )


def found(facts: HostFacts, wall: str, **changes: object) -> Finding:
    every = advice(dataclasses.replace(facts, **changes))  # type: ignore[arg-type]
    return next(finding for finding in every if finding.wall == wall)


def test_this_host_is_probed_without_an_error_and_once() -> None:
    here = probe()
    assert here is probe()
    assert here.is_root == (os.geteuid() == 0)
    assert here.cores >= 1
    assert here.memory_bytes > 2**20
    if here.can_sandbox:
        assert here.bwrap_version >= (0, 8)


def test_a_good_host_misses_nothing(facts: HostFacts) -> None:
    assert {finding.state for finding in advice(facts)} == {State.ENFORCED}


def test_every_missing_wall_has_a_command(facts: HostFacts) -> None:
    worst = dataclasses.replace(
        facts,
        is_root=False,
        kernel_release="5.10.0",
        bwrap_path=None,
        bwrap_version=(),
        sandbox_problem="x",
        has_openat2=False,
        has_libseccomp=False,
        cgroup_mode=Mode.NONE,
        cgroup_controllers=(),
        tools={},
        core_pattern="|/usr/share/apport",
    )
    follow = {"network", "capabilities", "file sizes"}  # they come with the sandbox
    missing = [f for f in advice(worst) if f.state is State.MISSING and f.wall not in follow]
    assert len(missing) >= 11
    assert all(finding.command for finding in missing)


@pytest.mark.parametrize("wall", ["memory limit", "process limit", "cpu limit", "cpu time"])
def test_without_control_groups_a_limit_is_missing_and_why(facts: HostFacts, wall: str) -> None:
    assert found(facts, wall).state is State.ENFORCED
    none: dict[str, object] = {
        "is_root": False,
        "kernel_release": "5.10.0-8-amd64",
        "cgroup_mode": Mode.NONE,
        "cgroup_controllers": (),
        "cgroup_problem": "v2: no v2 hierarchy is mounted",
    }
    finding = found(facts, wall, **none)
    assert finding.state is State.MISSING
    assert "no v2 hierarchy" in finding.why
    assert "Delegate=yes" in finding.command


def test_files_are_capped_by_number_or_by_memory_or_not_at_all(facts: HostFacts) -> None:
    assert "fixed number" in found(facts, "inode limit").why
    no: dict[str, object] = {"inode_problem": "namespaces of the sandbox: Permission denied"}
    finding = found(facts, "inode limit", **no)
    assert finding.state is State.ENFORCED
    assert "Permission denied" in finding.why
    assert "count as memory" in finding.why
    finding = found(facts, "inode limit", cgroup_controllers=("pids",), **no)
    assert finding.state is State.MISSING
    assert finding.command


@pytest.mark.parametrize(
    ("is_root", "release", "state"),
    [
        (True, "5.10.0-8-amd64", State.ENFORCED),
        (False, "5.14.0", State.ENFORCED),
        (False, "6.1.0", State.ENFORCED),
        (False, "5.13.19", State.MISSING),
        (False, "unknown", State.MISSING),
    ],
)
def test_processes_are_limited_without_groups_where_a_sandbox_is_counted_alone(
    facts: HostFacts, is_root: bool, release: str, state: State
) -> None:
    changes: dict[str, object] = {"is_root": is_root, "kernel_release": release}
    finding = found(facts, "process limit", cgroup_mode=Mode.NONE, cgroup_controllers=(), **changes)
    assert finding.state is state


def test_a_controller_that_was_not_delegated_is_missing_alone(facts: HostFacts) -> None:
    some = ("cpuacct", "memory", "pids")
    assert found(facts, "cpu limit", cgroup_controllers=some).state is State.MISSING
    assert found(facts, "memory limit", cgroup_controllers=some).state is State.ENFORCED


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"has_libseccomp": False}, "apt-get install libseccomp2"),
        ({"has_seccomp": False}, "CONFIG_SECCOMP_FILTER"),
    ],
)
def test_a_host_that_cannot_filter_calls_is_told_what_lacks(
    facts: HostFacts, changes: dict[str, object], command: str
) -> None:
    assert found(facts, "seccomp").state is State.ENFORCED
    finding = found(facts, "seccomp", **changes)
    assert finding.state is State.MISSING
    assert command in finding.command


def test_control_groups_are_found_by_making_them_and_removed_again() -> None:
    facts = with_groups(probe())
    assert (facts.cgroup_mode is Mode.NONE) == (facts.cgroup_controllers == ())
    assert (facts.cgroup_mode is Mode.NONE) == bool(facts.cgroup_problem)
    # Not rglob: groups of others vanish while it looks.
    left = {name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names}
    assert f"retort-probe-{os.getpid()}" not in left


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"bwrap_path": None, "bwrap_version": ()}, "apt-get install bubblewrap"),
        ({"bwrap_version": (0, 4, 1)}, "Debian 12"),
        ({"has_pidfd": False}, "uname -r"),
        (
            {"settings": {"kernel.unprivileged_userns_clone": "0"}},
            "sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            {"settings": {"kernel.apparmor_restrict_unprivileged_userns": "1"}},
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ({"settings": {"user.max_user_namespaces": "0"}}, "user.max_user_namespaces=10000"),
        ({"settings": {"user.max_user_namespaces": "9999"}}, "seccomp=unconfined"),
    ],
)
def test_a_host_without_sandboxes_gets_the_command_for_its_reason(
    facts: HostFacts, changes: dict[str, object], command: str
) -> None:
    finding = found(facts, "sandbox", **{"sandbox_problem": "setting up uid map", **changes})
    assert finding.state is State.MISSING
    assert command in finding.command


def test_the_version_is_read_from_the_program(tmp_path) -> None:
    tool = tmp_path / "bwrap"
    tool.write_text("#!/bin/sh\necho bubblewrap 0.11.0\n")
    tool.chmod(0o755)
    assert bwrap_version(str(tool)) == (0, 11, 0)
    assert bwrap_version(str(tmp_path / "missing")) == ()
    assert bwrap_version(None) == ()
