# SPDX-License-Identifier: MIT
"""Names and configs of Keras objects: what `get` and `serialize` do."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

from .._optional import require

T = TypeVar("T")

_PLAIN = (str, int, float, bool)


class Registry(Generic[T]):
    """The classes of one kind, found by name, config, class or instance.

    Parameters
    ----------
    kind : str
        Word of the error texts, such as "initializer".
    module : str
        Module that configs name, such as "keras.initializers".
    classes : iterable of type
        Each goes by its name, also in snake case.
    aliases : mapping, optional
        Further names.
    elsewhere : mapping, optional
        Modules of the classes that Keras has not in `module`.
    """

    def __init__(
        self,
        kind: str,
        module: str,
        classes: Iterable[type[T]],
        aliases: Mapping[str, type[T]] | None = None,
        elsewhere: Mapping[type[T], str] | None = None,
    ) -> None:
        self.kind = kind
        self.modules = {kept: module for kept in classes} | dict(elsewhere or {})
        self.classes: dict[str, type[T]] = {}
        for kept in self.modules:
            self.classes[kept.__name__] = self.classes[_snake(kept.__name__)] = kept
        self.classes.update(aliases or {})

    def get(self, identifier: Any, wrap: Callable[[Any], T]) -> T | None:
        """Find the object that an identifier means.

        Parameters
        ----------
        identifier : None, str, dict, type, instance or callable
        wrap : callable
            Gives a callable from elsewhere the interface of this kind.

        Returns
        -------
        object or None
            None for None.

        Raises
        ------
        TypeError
            A config has wrong arguments or names no module.
        ValueError
            The identifier means nothing.
        """
        if identifier is None:
            return None
        if isinstance(identifier, str):
            identifier = {"class_name": identifier, "config": {}}
        elif self._is_of_keras(identifier):
            identifier = {
                "class_name": type(identifier).__name__,
                "config": identifier.get_config(),
            }
        if isinstance(identifier, dict):
            return self.deserialize(identifier)
        if inspect.isclass(identifier):
            identifier = identifier()
        if type(identifier) in self.modules:
            return identifier  # type: ignore[no-any-return]
        if callable(identifier):
            return wrap(identifier)
        raise self._unknown(identifier)

    def deserialize(
        self, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> T:
        """Make the object that a config describes."""
        if "class_name" not in config:
            raise ValueError(f"Unknown `config` as a `dict`, config={config}")
        name = config["class_name"]
        found: Any = dict(custom_objects or {}).get(name)
        if found is None:
            if config.get("module", "") is None:
                raise TypeError(
                    f"Cannot deserialize object of type `{name}`: it is a custom "
                    "class; pass an instance, or the class in `custom_objects`"
                )
            found = self.classes.get(name)
        if found is None:
            raise self._unknown(config)
        made: T = found.from_config(config.get("config") or {})
        return made

    def serialize(self, kept: Any) -> Any:
        """Describe an object as Keras does; None and names stay what they are."""
        if kept is None or isinstance(kept, str):
            return kept
        if inspect.isroutine(kept):
            return _function_config(kept)
        cls = type(kept)
        config = to_plain(kept.get_config())
        if cls in self.modules:
            return _config(self.modules[cls], cls.__name__, config, None)
        module = None if cls.__module__ == "__main__" else cls.__module__
        return _config(module, cls.__name__, config, cls.__name__)

    def _is_of_keras(self, identifier: Any) -> bool:
        """Whether it is an instance of Keras's own class of this kind."""
        cls = type(identifier)
        return (
            cls.__module__.partition(".")[0] == "keras"
            and cls.__name__ in self.classes
            and hasattr(identifier, "get_config")
        )

    def _unknown(self, identifier: Any) -> ValueError:
        if isinstance(identifier, dict) and identifier.keys() == {
            "class_name",
            "config",
        }:
            identifier = identifier["class_name"]
        return ValueError(f"Could not interpret {self.kind} identifier: {identifier}")


def to_plain(value: Any) -> Any:
    """Turn what a config holds into what JSON can hold, as Keras does."""
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_plain(item) for item in value)
    if isinstance(value, np.ndarray | np.generic):
        config = {"value": value.tolist(), "dtype": str(value.dtype)}
        return {"class_name": "__tensor__", "config": config}
    cls = type(value)
    return _config("keras.random", cls.__name__, to_plain(value.get_config()), None)


def from_plain(value: Any) -> Any:
    """Undo `to_plain` for numbers and arrays."""
    if isinstance(value, dict) and value.get("class_name") in (
        "__tensor__",
        "__numpy__",
    ):
        config = value["config"]
        return np.asarray(config["value"], numpy_dtype(config["dtype"]))
    return value


def numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """Return a dtype by its name; None is float32, as in Keras.

    Raises
    ------
    ImportError
        It is bfloat16, which NumPy has from ml_dtypes, and that is not installed.
    TypeError
        There is no such dtype.
    """
    if dtype is None:
        return np.dtype(np.float32)
    try:
        return np.dtype(dtype)  # type: ignore[no-any-return]
    except TypeError:
        if dtype != "bfloat16":
            raise
    made: np.dtype[Any] = np.dtype(require("ml_dtypes", "dtype bfloat16").bfloat16)
    return made


def _snake(name: str) -> str:
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _config(
    module: str | None, name: str, config: Any, registered: str | None
) -> dict[str, Any]:
    return {
        "module": module,
        "class_name": name,
        "config": config,
        "registered_name": registered,
    }


def _function_config(function: Any) -> dict[str, Any]:
    name = function.__name__
    if name == "<lambda>":
        raise TypeError(
            "a lambda has no name to save; pass a named function or a class"
        )
    return _config("builtins", "function", name, "function")
