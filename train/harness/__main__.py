"""``lm_eval`` with the model ``ivon-jax``: ``python -m ivon_jax.train.harness``."""

import sys
from importlib.util import find_spec

from ivon_jax.errors import one_line
from ivon_jax.train.pod import runtime


def main() -> None:
    """Runs lm-eval's own command line; bad input is one line and exit code 2."""
    if find_spec("lm_eval") is None:
        print(
            "ivon-jax: lm_eval is not installed; pip install ivon-jax[eval]",
            file=sys.stderr,
        )
        sys.exit(2)
    from lm_eval.__main__ import cli_evaluate

    import ivon_jax.train.harness.model  # noqa: F401 -- registers the model

    runtime.keep_compilations()
    try:
        cli_evaluate()
    except (ValueError, OSError) as error:
        print("ivon-jax:", one_line(error), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
