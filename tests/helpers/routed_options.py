"""Re-rankers by options of one level, for tests that go through many of them."""

from dataclasses import fields, replace

from pyterrier_routehead import Extensions, RouteHeadReranker

EXTENSIONS = {field.name for field in fields(Extensions)}


def by_options(*router, **options) -> RouteHeadReranker:
    """A RouteHeadReranker; what belongs to its extensions is given like the other arguments."""
    return RouteHeadReranker(*router, **folded(options))


def folded(options: dict) -> dict:
    """Options with those of the extensions in an object of their own."""
    beyond = {name: value for name, value in options.items() if name in EXTENSIONS}
    if not beyond:
        return options
    others = {name: value for name, value in options.items() if name not in EXTENSIONS}
    return {**others, "extensions": replace(options.get("extensions", Extensions()), **beyond)}
