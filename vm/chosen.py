"""The tests whose outcome depends on the host: its control groups, its kernel, who runs them."""

TESTS = (
    "tests/sandbox",
    "tests/systemd",
    "tests/e2e/attacks",
    "tests/e2e/test_verdicts.py",
    "tests/e2e/test_selftest.py",
    "tests/e2e/test_unprivileged_limits.py",
    "tests/e2e/test_first_run.py",
    "tests/e2e/test_runs.py",
    "tests/unit/hostfs/test_quota.py",  # project quotas: the kernel of the machine has them
    "tests/e2e/test_quotas.py",
    "tests/e2e/test_pool.py",
    "tests/e2e/test_mounts.py",
    "tests/e2e/test_survival.py",
    "tests/e2e/test_adopted_walls.py",
)
#: The public client is not in the virtual machine, and not for every user elsewhere.
LEFT_OUT = ("tests/e2e/test_mounts.py::test_the_public_client_mounts_folders_by_name_and_by_place",)
CHOSEN = [*TESTS, *(f"--deselect={test}" for test in LEFT_OUT)]
