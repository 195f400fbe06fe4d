"""Small changes to Python source that may break what it does: where they can be made, and how.

A change replaces one span of the text, so comments and format stay and a diff is a few lines. It is
of a kind that people really make: a comparison or a sign turned round, a constant off, two
arguments swapped, an option forgotten. Annotations, docstrings and words for people are left alone.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import unified_diff

# What a change of some kind weighs when one is drawn; every other kind weighs 1.
WEIGHTS = {"string": 0.3, "prose": 0.03, "dropped raise": 0.5, "return": 0.5, "set attribute": 0.5}
COMPARED: dict[type[ast.cmpop], tuple[str, list[str]]] = {
    ast.Lt: ("<", ["<=", ">"]),
    ast.LtE: ("<=", ["<", ">="]),
    ast.Gt: (">", [">=", "<"]),
    ast.GtE: (">=", [">", "<="]),
    ast.Eq: ("==", ["!="]),
    ast.NotEq: ("!=", ["=="]),
    ast.In: ("in", ["not in"]),
    ast.NotIn: (r"not\s+in", ["in"]),
    ast.Is: ("is", ["is not"]),
    ast.IsNot: (r"is\s+not", ["is"]),
}
COMPUTED: dict[type[ast.operator], tuple[str, list[str]]] = {
    ast.Add: ("+", ["-"]),
    ast.Sub: ("-", ["+"]),
    ast.Mult: ("*", ["/"]),
    ast.Div: ("/", ["*"]),
    ast.FloorDiv: ("//", ["/", "*"]),
    ast.Mod: ("%", ["//"]),
    ast.Pow: ("**", ["*"]),
    ast.BitAnd: ("&", ["|"]),
    ast.BitOr: ("|", ["&"]),
}
_PAIRS = (
    "max min, maximum minimum, amax amin, argmax argmin, nanmax nanmin, any all, ceil floor, "
    "startswith endswith, log10 log2, lstrip rstrip, add_ sub_, mul_ div_, issubset issuperset, "
    "mean sum, median mean, std var, bisect_left bisect_right, extend append"
)
NAMES = {
    name: other
    for pair in _PAIRS.split(", ")
    for name, other in (tuple(pair.split()), tuple(reversed(pair.split())))
} | {"reversed": "list", "mean": "sum", "log": "log10", "exp": "expm1"}
EMPTY = {"str": '""', "list": "[]", "tuple": "()", "dict": "{}", "set": "set()", "int": "0"}
DROPPABLE_DECORATORS = {"cache", "lru_cache", "no_grad", "inference_mode", "enable_grad"}
# Guards against a programmer's slip, and settings without an effect on what is computed.
SILENT_KEYWORDS = {"strict", "encoding", "stacklevel", "help", "metavar", "frozen", "slots"}
COMMUTATIVE = {"max", "min", "maximum", "minimum", "isclose", "allclose", "gcd"}
SILENT_NAMES = {"__all__", "__slots__", "__version__"}
TYPES = {"Annotated", "Callable", "Literal", "Optional", "Union"}


@dataclass(frozen=True)
class Mutant:
    """One change: the text to put in place of a span of bytes, and what executes it."""

    name: str
    path: str
    line: int
    kind: str
    start: int
    end: int
    text: str
    first: int  # The lines of the statement that is changed, without the body of a compound one.
    last: int
    defines: tuple[str, ...]  # Names that a statement at module level sets; empty in a function.

    @property
    def at_import(self) -> bool:
        """Whether the line is executed when the module is imported."""
        return bool(self.defines)

    def applied(self, source: bytes) -> bytes:
        """The source with the change."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    def diff(self, source: bytes) -> str:
        """The change as a unified diff with two lines of context."""
        before, after = (text.decode().splitlines() for text in (source, self.applied(source)))
        return "\n".join(unified_diff(before, after, self.path, self.path, lineterm="", n=2))


@dataclass(frozen=True)
class _Change:
    kind: str
    start: int
    end: int
    text: str


def mutants(path: str, source: bytes) -> Iterator[tuple[Mutant, float]]:
    """All changes of one file with their weights; those of one node share the weight of one.

    A few are no Python, or no change at all; `is_real` tells.
    """
    module = _Source(source)
    seen: Counter[str] = Counter()
    for node, place in _places(module.tree):
        changes = list(_changes(node, place, module))
        for change in changes:
            line = source.count(b"\n", 0, change.start)
            at = place
            if change.kind == "ignored option":  # Stands in the body, not where it is defined.
                at = replace(place, first=line + 1, last=line + 1, defines=())
            identity = "\n".join((path, module.lines[line].strip(), change.kind, change.text))
            seen[identity] += 1
            name = hashlib.sha256(f"{identity}{seen[identity]}".encode()).hexdigest()[:10]
            mutant = Mutant(
                name, path, line + 1, change.kind, change.start, change.end, change.text,
                at.first, at.last, at.defines,
            )  # fmt: skip
            yield mutant, WEIGHTS.get(change.kind, 1.0) / len(changes)


def is_real(mutant: Mutant, source: bytes) -> bool:
    """Whether the changed text is Python, and other Python than before."""
    try:
        return ast.dump(ast.parse(mutant.applied(source))) != ast.dump(ast.parse(source))
    except (SyntaxError, ValueError):
        return False


@dataclass(frozen=True)
class _Place:
    """Where a node stands: its parents, innermost first, and the statement it belongs to."""

    parents: tuple[ast.AST, ...]
    first: int
    last: int
    defines: tuple[str, ...]

    @property
    def parent(self) -> ast.AST:
        return self.parents[0]

    @property
    def function(self) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        kinds = ast.FunctionDef | ast.AsyncFunctionDef
        return next((node for node in self.parents if isinstance(node, kinds)), None)


class _Source:
    """Source text in which nodes are found by their place."""

    def __init__(self, source: bytes) -> None:
        self.bytes = source
        self.tree = ast.parse(source)
        self.lines = source.decode().splitlines()
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        start = self._starts[node.lineno - 1] + node.col_offset
        last, column = node.end_lineno or node.lineno, node.end_col_offset or node.col_offset
        return start, self._starts[last - 1] + column

    def text(self, node: ast.expr | ast.stmt | ast.keyword) -> str:
        start, end = self.span(node)
        return self.bytes[start:end].decode()

    def between(self, left: ast.expr, right: ast.expr, pattern: str) -> tuple[int, int] | None:
        """The span of an operator between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        found = re.search(pattern.encode(), self.bytes[start:end])
        return (start + found.start(), start + found.end()) if found else None


def _places(tree: ast.Module) -> Iterator[tuple[ast.AST, _Place]]:
    stack: list[tuple[ast.AST, _Place]] = [
        (child, _Place((tree,), 1, 1, ("",))) for child in reversed(tree.body)
    ]
    while stack:
        node, place = stack.pop()
        if isinstance(node, ast.stmt):
            place = _at_statement(node, place)
        if _is_left_alone(node, place):
            continue
        yield node, place
        for child in reversed(list(_children(node))):
            inside = place.defines
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and child in node.body:
                inside = ()
            parents = (node, *place.parents)
            stack.append((child, _Place(parents, place.first, place.last, inside)))


def _at_statement(node: ast.stmt, place: _Place) -> _Place:
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    last = node.end_lineno or first
    body = getattr(node, "body", None) or getattr(node, "cases", None)
    if body:
        inner = body[0].pattern if isinstance(body[0], ast.match_case) else body[0]
        last = max(first, inner.lineno - 1)
    defines = place.defines and (*place.defines, *_defined(node))
    return _Place(place.parents, first, last, defines)


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    for target in targets:
        for name in ast.walk(target) if target else ():
            if isinstance(name, ast.Name):
                yield name.id


def _is_left_alone(node: ast.AST, place: _Place) -> bool:
    match node:
        case ast.If():
            guard = ast.unparse(node.test)
            return "TYPE_CHECKING" in guard or "__name__" in guard
        case ast.Assign() | ast.AnnAssign():
            return bool(SILENT_NAMES & {*_defined(node)})
        case ast.keyword():
            return node.arg in SILENT_KEYWORDS
        case ast.Subscript():  # An alias of a type.
            return ast.unparse(node.value).split(".")[-1] in TYPES
        case ast.Constant(value=str()) if isinstance(place.parent, ast.Call):
            return _called(place.parent) in {"cast", "TypeVar", "NewType", "ParamSpec"}
    return isinstance(node, ast.Import | ast.ImportFrom | ast.Assert) or _is_docstring(node)


def _called(node: ast.Call) -> str:
    """The last word of what is called."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "type_params"} or isinstance(node, ast.JoinedStr):
            continue
        children = value if isinstance(value, list) else [value]
        yield from (child for child in children if isinstance(child, ast.AST))


def _changes(node: ast.AST, place: _Place, source: _Source) -> Iterator[_Change]:
    yield from _in_expression(node, source)
    yield from _in_value(node, place, source)
    yield from _in_function(node, place, source)
    yield from _in_statement(node, source)


def _in_expression(node: ast.AST, source: _Source) -> Iterator[_Change]:
    match node:
        case ast.Compare():
            yield from _comparisons(node, source)
        case ast.BinOp():
            yield from _arithmetic(node, source)
        case ast.BoolOp():
            yield from _and_or(node, source)
        case ast.UnaryOp(op=ast.Not() | ast.USub()) if not isinstance(node.operand, ast.Constant):
            yield _replaced("unary", node, source.text(node.operand), source)
        case ast.Call():
            yield from _calls(node, source)
        case ast.IfExp():
            yield _inverted(node.test, source)
        case ast.comprehension():
            yield from (_inverted(test, source) for test in node.ifs)


def _in_value(node: ast.AST, place: _Place, source: _Source) -> Iterator[_Change]:
    match node:
        case ast.Constant():
            yield from _constants(node, place, source)
        case ast.JoinedStr():
            yield from _formatted(node, source)
        case ast.Slice():
            yield from _bounds(node, source)


def _in_function(node: ast.AST, place: _Place, source: _Source) -> Iterator[_Change]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield from _options(node, source)
            yield from _decorators(node, source)
        case ast.Return(value=None):
            yield _replaced("dropped return", node, "pass", source)
        case ast.Return():
            yield from _returned(node, place, source)


def _in_statement(node: ast.AST, source: _Source) -> Iterator[_Change]:
    match node:
        case ast.AugAssign():
            yield from _added(node, source)
        case ast.If() | ast.While():
            yield _inverted(node.test, source)
        case ast.With():
            yield from _contexts(node, source)
        case ast.Expr(value=ast.Call() | ast.Yield() | ast.YieldFrom() | ast.Await()):
            yield _replaced("dropped call", node, "pass", source)
        case ast.Raise():
            yield _replaced("dropped raise", node, "pass", source)
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield _replaced("set attribute", node, "pass", source)
        case ast.Delete():
            yield _replaced("dropped del", node, "pass", source)
        case ast.Break() | ast.Continue():
            other = "continue" if isinstance(node, ast.Break) else "break"
            yield _replaced("break/continue", node, other, source)


def _inverted(test: ast.expr, source: _Source) -> _Change:
    return _replaced("condition", test, f"not ({source.text(test)})", source)


def _replaced(kind: str, node: ast.expr | ast.stmt, text: str, source: _Source) -> _Change:
    return _Change(kind, *source.span(node), text)


def _comparisons(node: ast.Compare, source: _Source) -> Iterator[_Change]:
    operands = [node.left, *node.comparators]
    for left, right, operator in zip(operands, operands[1:], node.ops, strict=False):
        pattern, others = COMPARED[type(operator)]
        if span := source.between(left, right, pattern):
            yield from (_Change("comparison", *span, other) for other in others)


def _arithmetic(node: ast.BinOp, source: _Source) -> Iterator[_Change]:
    sides = (node.left, node.right)
    text = any(isinstance(s, ast.JoinedStr) or _is_text(s) for s in sides)
    if type(node.op) not in COMPUTED or text:  # With text no other operator is possible.
        return
    sign, others = COMPUTED[type(node.op)]
    if span := source.between(*sides, re.escape(sign)):
        yield from (_Change("arithmetic", *span, other) for other in others)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _added(node: ast.AugAssign, source: _Source) -> Iterator[_Change]:
    if type(node.op) in COMPUTED:
        sign, others = COMPUTED[type(node.op)]
        if span := source.between(node.target, node.value, re.escape(sign) + "="):
            yield from (_Change("arithmetic", *span, f"{other}=") for other in others)
            yield _Change("arithmetic", *span, "=")


def _and_or(node: ast.BoolOp, source: _Source) -> Iterator[_Change]:
    word, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
    for left, right in zip(node.values, node.values[1:], strict=False):
        if span := source.between(left, right, rf"\b{word}\b"):
            yield _Change("and/or", *span, other)


def _constants(node: ast.Constant, place: _Place, source: _Source) -> Iterator[_Change]:
    value, is_default = node.value, isinstance(place.parent, ast.arguments)
    if isinstance(value, bool):
        yield _replaced("default" if is_default else "True/False", node, str(not value), source)
    elif isinstance(value, int | float):
        others = {repr(value + 1), repr(value * 2), repr(-value)}
        others |= {"0"} if value == 1 else set()
        others |= {repr(value / 2)} if isinstance(value, float) else set()
        for other in sorted(others - {repr(value), "-0"}):
            yield _replaced("default" if is_default else "number", node, other, source)
    elif isinstance(value, str):
        yield _appended(node, value, place, source)


def _appended(
    node: ast.Constant | ast.JoinedStr, value: str, place: _Place | None, source: _Source
) -> _Change:
    text = source.text(node)
    quote = 3 if text.endswith(('"""', "'''")) else 1
    is_prose = value.count(" ") > 1 or (
        place and any(isinstance(p, ast.Raise) for p in place.parents)
    )
    return _replaced(
        "prose" if is_prose else "string", node, f"{text[:-quote]}x{text[-quote:]}", source
    )


def _formatted(node: ast.JoinedStr, source: _Source) -> Iterator[_Change]:
    text = source.text(node)
    start, _ = source.span(node)
    for found in re.finditer(r":[,+]?\.(\d)[efg%]\}", text):
        digit = start + len(text[: found.start(1)].encode())
        yield _Change("format", digit, digit + 1, str((int(found[1]) + 1) % 10))
    yield _appended(node, text, None, source)


def _calls(node: ast.Call, source: _Source) -> Iterator[_Change]:
    if _called(node) == "sorted":
        yield _replaced("name", node, f"list({source.text(node.args[0])})", source)
    elif other := NAMES.get(_called(node)):
        owner = f"{source.text(node.func.value)}." if isinstance(node.func, ast.Attribute) else ""
        yield _replaced("name", node.func, owner + other, source)
    yield from _arguments(node, source)


def _arguments(node: ast.Call, source: _Source) -> Iterator[_Change]:
    for left, right in zip(node.args, node.args[1:], strict=False):
        in_any_order = _called(node) in COMMUTATIVE and len(node.args) == 2
        if in_any_order or isinstance(left, ast.Starred) or isinstance(right, ast.Starred):
            continue
        (start, middle), (resumed, end) = source.span(left), source.span(right)
        gap = source.bytes[middle:resumed].decode()
        swapped = f"{source.text(right)}{gap}{source.text(left)}"
        yield _Change("swapped arguments", start, end, swapped)
    for keyword in node.keywords:
        if keyword.arg and keyword.arg not in SILENT_KEYWORDS:
            yield _without(keyword, source)


def _without(keyword: ast.keyword, source: _Source) -> _Change:
    start, end = source.span(keyword)
    if comma := re.match(rb"\s*,\s*", source.bytes[end:]):
        return _Change("dropped keyword", start, end + comma.end(), "")
    before = re.search(rb",?\s*$", source.bytes[:start])
    return _Change("dropped keyword", before.start() if before else start, end, "")


def _bounds(node: ast.Slice, source: _Source) -> Iterator[_Change]:
    for bound in (node.lower, node.upper):
        if bound and not isinstance(bound, ast.Constant):  # Constants change as numbers.
            yield _replaced("slice", bound, f"({source.text(bound)}) + 1", source)
            yield _replaced("slice", bound, f"({source.text(bound)}) - 1", source)
    if node.step is None and node.lower and not node.upper:
        yield _Change("slice", *source.span(node), ":")


def _options(node: ast.FunctionDef | ast.AsyncFunctionDef, source: _Source) -> Iterator[_Change]:
    """An option that is ignored: the parameter is its default, whatever was passed."""
    body = [statement for statement in node.body if not _is_docstring(statement)]
    if not body or body[0].lineno == node.lineno:
        return
    positional = [*node.args.posonlyargs, *node.args.args]
    given = [
        *zip(reversed(positional), reversed(node.args.defaults), strict=False),
        *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
    ]
    start = source.span(body[0])[0]
    if decorators := getattr(body[0], "decorator_list", None):
        start = source.span(decorators[0])[0] - 1
    for parameter, default in given:
        if isinstance(default, ast.Constant | ast.Name | ast.Attribute | ast.UnaryOp):
            ignored = f"{parameter.arg} = {source.text(default)}\n{' ' * body[0].col_offset}"
            yield _Change("ignored option", start, start, ignored)


def _decorators(node: ast.FunctionDef | ast.AsyncFunctionDef, source: _Source) -> Iterator[_Change]:
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if ast.unparse(called).split(".")[-1] in DROPPABLE_DECORATORS:
            start, end = source.span(decorator)
            yield _Change("dropped decorator", source.bytes.rindex(b"@", 0, start), end, "")


def _returned(node: ast.Return, place: _Place, source: _Source) -> Iterator[_Change]:
    function = place.function
    if node.value and function and function.returns:
        value, declared = source.text(node.value), ast.unparse(function.returns)
        if declared == "bool":
            yield _replaced("return", node, f"return not ({value})", source)
        if declared in {"int", "float", "Tensor", "torch.Tensor"}:
            yield _replaced("return", node, f"return -({value})", source)
        if "None" in declared:
            yield _replaced("return", node, "return None", source)
        if empty := EMPTY.get(declared.split("[")[0]):
            yield _replaced("return", node, f"return {empty}", source)


def _contexts(node: ast.With, source: _Source) -> Iterator[_Change]:
    for item in node.items:
        if item.optional_vars is None:
            nothing = '__import__("contextlib").nullcontext()'
            yield _replaced("dropped context", item.context_expr, nothing, source)
