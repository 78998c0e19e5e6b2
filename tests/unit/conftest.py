import sys


def pytest_sessionfinish(session):
    """A run of these tests alone must not have loaded torch: they are for every change, in seconds."""
    layers = {item.path.relative_to(session.config.rootpath).parts[1] for item in session.items}
    if layers == {"unit"} and "torch" in sys.modules:
        print("\ntests/unit has loaded torch: tests that need it belong in tests/model", file=sys.stderr)
        session.exitstatus = 1
