"""Declarative node parameters: each has a description, a unit and limits, and a change either acts or is refused.

All faults of one node's parameters are reported together, at start and on every set.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rclpy.exceptions
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from engine.errors import InvalidInput, Problem

_SCALARS = {
    bool: RosParameter.Type.BOOL,
    int: RosParameter.Type.INTEGER,
    float: RosParameter.Type.DOUBLE,
    str: RosParameter.Type.STRING,
}
_ARRAYS = {
    bool: RosParameter.Type.BOOL_ARRAY,
    int: RosParameter.Type.INTEGER_ARRAY,
    float: RosParameter.Type.DOUBLE_ARRAY,
    str: RosParameter.Type.STRING_ARRAY,
}
_LARGEST_INTEGER = 2**63 - 1


@dataclass(frozen=True)
class Required:
    """Stands in place of a default where no default is safe: whoever starts the node must decide.

    Attributes:
        kind: Type of one value: `bool`, `int`, `float` or `str`.
        array: Whether the parameter is a list of such values.
    """

    kind: type
    array: bool = False


@dataclass(frozen=True)
class Parameter:
    """One parameter of a node.

    Attributes:
        name: Name; carries the unit as a suffix where there is one (`_s`, `_hz`, `_m`, `_rad`).
        default: Value if none is given, or :class:`Required`. A tuple makes an array; an empty one holds strings.
        description: What it does, in a sentence.
        unit: Unit of the value; empty if it has none.
        minimum: Smallest value allowed, itself included; numbers only, each element of an array.
        maximum: Largest value allowed, itself included.
        one_of: The only values allowed; empty if there is no such list.
        read_only: Fixed once the node is up. Otherwise a change takes effect through `ParameterSet.on_change`.
        check: Further condition: returns why a value is not allowed, or None.
    """

    name: str
    default: Any
    description: str
    unit: str = ''
    minimum: float | None = None
    maximum: float | None = None
    one_of: tuple[Any, ...] = ()
    read_only: bool = True
    check: Callable[[Any], str | None] | None = None

    @property
    def kind(self) -> type:
        """Type of the value, or of each element of an array."""
        if isinstance(self.default, Required):
            return self.default.kind
        if isinstance(self.default, tuple):
            return type(self.default[0]) if self.default else str
        return type(self.default)

    @property
    def array(self) -> bool:
        """Whether the value is a list."""
        return self.default.array if isinstance(self.default, Required) else isinstance(self.default, tuple)

    @property
    def ros_type(self) -> RosParameter.Type:
        """The type that ROS knows it by."""
        return (_ARRAYS if self.array else _SCALARS)[self.kind]

    @property
    def allowed(self) -> str:
        """What may be given, as text."""
        if self.one_of:
            return 'one of ' + ', '.join(str(value) for value in self.one_of)
        kind = self.ros_type.name.lower().replace('_', ' ')
        unit = f' {self.unit}' if self.unit else ''
        if self.minimum is None and self.maximum is None:
            return kind + (f' in{unit}' if unit else '')
        low = '-inf' if self.minimum is None else f'{self.minimum:g}'
        high = 'inf' if self.maximum is None else f'{self.maximum:g}'
        return f'{kind} in [{low}, {high}]{unit}'

    def descriptor(self) -> ParameterDescriptor:
        """Build what `ros2 param describe` shows."""
        text = self.description + (f' [{self.unit}]' if self.unit else '')
        descriptor = ParameterDescriptor(description=text, read_only=self.read_only)
        if self.one_of:
            descriptor.additional_constraints = self.allowed
        if self.minimum is not None or self.maximum is not None:
            self._describe_range(descriptor)
        return descriptor

    def _describe_range(self, descriptor: ParameterDescriptor) -> None:
        if self.kind is int:
            first = -_LARGEST_INTEGER if self.minimum is None else int(self.minimum)
            last = _LARGEST_INTEGER if self.maximum is None else int(self.maximum)
            descriptor.integer_range = [IntegerRange(from_value=first, to_value=last)]
        else:
            low = -sys.float_info.max if self.minimum is None else float(self.minimum)
            high = sys.float_info.max if self.maximum is None else float(self.maximum)
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]

    def problem(self, value: Any) -> Problem | None:
        """Return why `value` is refused, or None if it is fine. `value` is of the right type already."""
        for element in value if self.array else [value]:
            if not self._allows(element):
                return Problem(self.name, 'value not allowed', repr(value), self.allowed)
        reason = self.check(value) if self.check else None
        return Problem(self.name, reason, repr(value), self.allowed) if reason else None

    def _allows(self, element: Any) -> bool:
        if self.one_of and element not in self.one_of:
            return False
        if isinstance(element, float) and not math.isfinite(element):
            return False
        too_small = self.minimum is not None and element < self.minimum
        too_large = self.maximum is not None and element > self.maximum
        return not (too_small or too_large)


class ParameterSet:
    """A node's parameters: declared, validated and read in one place."""

    def __init__(
        self,
        node: Node,
        parameters: Iterable[Parameter],
        on_change: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Declare `parameters` on `node`.

        Args:
            node: The node that gets them.
            parameters: What to declare.
            on_change: Called after a set with the new values by name; must make them effective.

        Raises:
            InvalidInput: Values from the command line or a file are missing or not allowed; lists all of them.
            ValueError: A changeable parameter is declared without an `on_change`; a change would do nothing.
        """
        self._node = node
        self._parameters = {parameter.name: parameter for parameter in parameters}
        self._on_change = on_change
        changeable = [name for name, parameter in self._parameters.items() if not parameter.read_only]
        if changeable and on_change is None:
            raise ValueError(
                f'nobody applies changes of {", ".join(changeable)}: make them read_only or pass on_change'
            )
        problems = [problem for p in self._parameters.values() if (problem := self._declare(p)) is not None]
        if problems:
            raise InvalidInput(f'parameters of node {node.get_fully_qualified_name()}', problems)
        node.add_on_set_parameters_callback(self._validate)
        node.add_post_set_parameters_callback(self._apply)

    def __getitem__(self, name: str) -> Any:
        """Return the present value of `name`; arrays come as tuples."""
        value = self._value(self._parameters[name])
        if value is None:
            raise KeyError(f'{name} has no value')
        return value

    def as_dict(self) -> dict[str, Any]:
        """Return all present values by name."""
        return {name: self[name] for name in self._parameters}

    def _value(self, parameter: Parameter) -> Any:
        value = self._node.get_parameter_or(parameter.name).value
        if value is None:  # an empty array is not something ROS can hold as a typed default
            return None if isinstance(parameter.default, Required) else parameter.default
        return tuple(value) if parameter.array else value

    def _declare(self, parameter: Parameter) -> Problem | None:
        try:
            if isinstance(parameter.default, Required) or parameter.default == ():
                self._node.declare_parameter(parameter.name, parameter.ros_type, parameter.descriptor())
            else:
                default = list(parameter.default) if parameter.array else parameter.default
                self._node.declare_parameter(parameter.name, default, parameter.descriptor())
        except rclpy.exceptions.InvalidParameterTypeException as error:
            return Problem(
                parameter.name, f'has the wrong type ({error})', '', parameter.allowed, _type_remedy(parameter)
            )
        except rclpy.exceptions.InvalidParameterValueException as error:
            return Problem(parameter.name, str(error), '', parameter.allowed)
        value = self._value(parameter)
        if value is None:
            return Problem(parameter.name, f'must be given: {parameter.description}', '', parameter.allowed)
        return parameter.problem(value)

    def _validate(self, changes: Sequence[RosParameter]) -> SetParametersResult:
        problems = []
        for change in changes:
            parameter = self._parameters.get(change.name)
            if parameter is not None and change.value is not None:
                problems.append(parameter.problem(tuple(change.value) if parameter.array else change.value))
        found = [str(problem) for problem in problems if problem is not None]
        return SetParametersResult(successful=not found, reason='; '.join(found))

    def _apply(self, changes: Sequence[RosParameter]) -> None:
        changed = {change.name: self[change.name] for change in changes if change.name in self._parameters}
        if changed and self._on_change is not None:
            self._on_change(changed)


def _type_remedy(parameter: Parameter) -> str:
    return 'write it with a decimal point, 15.0 instead of 15' if parameter.kind is float else ''
