"""JAX's last messages, in one line."""

import pytest

from ivon_jax.train.pod.last_words import explain

FATAL = (
    "F1128 11:14:42.904677 24899 client.h:80] Terminating process because the JAX"
    " distributed service detected fatal errors. absl::Status: UNAVAILABLE: "
)
SILENT = "The following tasks are unhealthy (stopped sending heartbeats):\n"
CRASHED = "\nThe tasks have crashed. Check the task logs for an earlier error.\n"


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (f"{FATAL}{SILENT}1{CRASHED}", "process 1 died or cannot be reached"),
        (f"{FATAL}{SILENT}10\n2{CRASHED}", "process 2, 10 died"),
        (f"{FATAL}Task 3 heartbeat timeout. This indicates", "process 3 died"),
        (f"{FATAL}failed to connect to the leader task\n", "process 0 died"),
        (f"{FATAL}RegisterTask: deadline exceeded\n", "coordinator: it did not answer"),
        (f"{FATAL}of an unknown kind\nmore\n", FATAL + "of an unknown kind"),
    ],
)
def test_the_processes_that_died_are_named(text, start):
    found = explain(text)
    assert found.startswith(start)
    assert "\n" not in found
