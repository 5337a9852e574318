"""Where programs can be isolated: Linux with seccomp and Landlock."""

import pytest

from progrpo.errors import ConfigError
from progrpo.rewards import code


@pytest.fixture(scope="session")
def sandboxes(require_all) -> None:
    """Skip, or fail in CI, where this kernel cannot isolate a program."""
    try:
        code.check_isolation("full")
    except ConfigError as error:
        pytest.fail(str(error)) if require_all else pytest.skip(str(error))
