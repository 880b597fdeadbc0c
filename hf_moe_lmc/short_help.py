"""Help on one screen."""


class ShortHelp(type):
    """Class of the public classes: `help` and `dir` list what users call, and not what every dataclass has."""

    def __dir__(cls) -> list[str]:
        fields = getattr(cls, "__dataclass_fields__", ())
        return [name for name in super().__dir__() if not name.startswith("_") and name not in fields]
