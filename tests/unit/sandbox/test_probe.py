"""What the probe finds here, and the advice for hosts that are worse off."""

from __future__ import annotations

import dataclasses
import os

import pytest

from retort.sandbox import probe as module
from retort.sandbox.probe import CgroupMode, Finding, HostFacts, State, advice, bwrap_version, probe


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
        has_overlayfs=True,
        landlock_abi=3,
        cgroup_mode=CgroupMode.V2,
        cgroup_controllers=("memory", "pids"),
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
    assert {finding.state for finding in advice(facts)} == {State.ENFORCED, State.PLANNED}


def test_every_missing_wall_has_a_command(facts: HostFacts) -> None:
    worst = dataclasses.replace(
        facts,
        is_root=False,
        bwrap_path=None,
        bwrap_version=(),
        sandbox_problem="x",
        has_openat2=False,
        cgroup_mode=CgroupMode.NONE,
        tools={},
        core_pattern="|/usr/share/apport",
    )
    follow = {"network", "capabilities", "file sizes"}  # they come with the sandbox
    missing = [f for f in advice(worst) if f.state is State.MISSING and f.wall not in follow]
    assert len(missing) >= 6
    assert all(finding.command for finding in missing)


def test_limits_are_said_to_be_unused_whatever_the_host_offers(facts: HostFacts) -> None:
    for mode in CgroupMode:
        finding = found(facts, "memory limit", cgroup_mode=mode)
        assert finding.state is State.PLANNED
        assert "not used yet" in finding.why
    assert "Delegate" in found(facts, "cpu limit", cgroup_mode=CgroupMode.NONE).command
    assert found(facts, "seccomp").state is State.PLANNED


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


def test_cgroup_trees_are_read_from_the_mount_table() -> None:
    table = (
        "1 2 0:3 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        "1 2 0:4 / /sys/fs/cgroup/unified rw shared:1 - cgroup2 cgroup2 rw\n"
        "1 2 0:5 / /proc rw - proc proc rw\n"
    )
    mounts = module._cgroup_mounts(table)
    assert mounts["cpuacct"] == "/sys/fs/cgroup/cpu"
    assert mounts[""] == "/sys/fs/cgroup/unified"
    groups = dict(module._own_groups("4:cpu,cpuacct:/a\n0::/\n"))
    assert groups == {"cpu": "/a", "cpuacct": "/a", "": ""}
