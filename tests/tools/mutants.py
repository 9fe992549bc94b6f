"""Mutants for `mutate`: small changes to the package's modules, each to one operator, constant, call or statement."""

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

OPERATORS: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
    **{ast.LShift: ast.RShift, ast.RShift: ast.LShift},
}
TWINS = (("min", "max"), ("minimum", "maximum"), ("argmin", "argmax"), ("any", "all"), ("floor", "ceil"))
TWINS += (("zeros", "ones"), ("sin", "cos"), ("zeros_like", "ones_like"))
NAMES = {a: b for pair in TWINS for a, b in (pair, pair[::-1])}
GUARD = 1e-5  # a smaller constant guards against a division by 0, and becomes 1
CHECKS = {"strict", "workers"}  # arguments that change no result
UNSEEN = {"annotation", "returns", "decorator_list", "type_params"}  # fields of the syntax tree without behaviour


@dataclass(frozen=True)
class Mutant:
    """One change to a module: its place, the old and the new text, and the module's whole source with it."""

    module: str
    line: int
    column: int
    change: str
    statement: str
    source: Callable[[], str]

    def __str__(self) -> str:
        """Format the line that is printed for a survivor."""
        return f"{path_of(self.module).relative_to(ROOT)}:{self.line}:{self.column}: {self.change}"


def mutants(module: str, text: str) -> list[Mutant]:
    """All mutants of a module's text, in order."""
    tree = ast.parse(text)
    found = []
    for node, put, chain in slots(tree):
        for number, new in enumerate(replacements(node)):
            line, column = getattr(node, "lineno", 0), getattr(node, "col_offset", 0)
            change = " -> ".join(text_with(node, put, one, chain) for one in (node, new))
            statement = " ".join(text.splitlines()[line - 1].split())
            source = make_source(tree, put, node, new)
            found.append((line, column, number, Mutant(module, line, column, change, statement, source)))
    return [mutant for *_, mutant in sorted(found, key=lambda one: one[:3])]


def slots(tree: ast.AST) -> Iterator[tuple[ast.AST, Callable[[ast.AST], None], list[ast.AST]]]:
    """Yield each node with behaviour, a function that replaces it, and its ancestors."""

    def visit(parent: ast.AST, chain: list[ast.AST]):
        for field, value in ast.iter_fields(parent):
            if field in UNSEEN:
                continue
            for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(node, ast.AST) and not is_silent(node):
                    yield node, make_setter(parent, field, index), chain + [parent]
                    if not is_negative(node):
                        yield from visit(node, chain + [parent])

    yield from visit(tree, [])


def is_silent(node: ast.AST) -> bool:
    """Whether a node has no behaviour to test: messages, imports, arguments that change no result."""
    silent = isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom)
    return silent or (isinstance(node, ast.keyword) and node.arg in CHECKS)


def is_negative(node: ast.AST) -> bool:
    """Whether a node is a negative number, which is changed as a whole."""
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)


def make_setter(parent: ast.AST, field: str, index: int | None) -> Callable[[ast.AST], None]:
    """Make a function that puts a node into a field of `parent`."""
    if index is None:
        return lambda node: setattr(parent, field, node)
    return lambda node: getattr(parent, field).__setitem__(index, node)


def make_source(tree: ast.AST, put: Callable, old: ast.AST, new: ast.AST) -> Callable[[], str]:
    """Make a function that returns the module's text with one node in place of another."""

    def source() -> str:
        put(new)
        try:
            return ast.unparse(ast.fix_missing_locations(tree))
        finally:
            put(old)

    return source


def text_with(old: ast.AST, put: Callable, new: ast.AST, chain: list[ast.AST]) -> str:
    """First line of the expression around a node, with another node in its place."""
    around = old
    if not isinstance(old, ast.stmt):
        around = next((one for one in reversed(chain) if is_clear_alone(one)), old)
    put(new)
    try:
        return ast.unparse(new if around is old else around).splitlines()[0]
    finally:
        put(old)


def is_clear_alone(node: ast.AST) -> bool:
    """Whether the text of a node is long enough to identify a change within it."""
    small = (ast.Tuple, ast.List, ast.Slice, ast.UnaryOp, ast.keyword, ast.Starred, ast.Attribute)
    return isinstance(node, ast.expr | ast.stmt) and not isinstance(node, small)


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the replacements of a node, one for each mutant."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in OPERATORS:
            yield with_fields(node, ops=[OPERATORS[type(op)]()])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in OPERATORS:
            yield with_fields(node, op=OPERATORS[type(op)]())
        case ast.AugAssign(op=op):
            yield ast.copy_location(ast.Pass(), node)
            if type(op) in OPERATORS:
                yield with_fields(node, op=OPERATORS[type(op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield with_fields(node, value=not value)
        case ast.Constant(value=int(value)):
            yield with_fields(node, value=value + 1)
        case ast.Constant(value=float(value)):
            yield with_fields(node, value=2 * value if abs(value) > GUARD else 1.0)
        case ast.Call(keywords=keywords):
            for number in (n for n, one in enumerate(keywords) if one.arg not in CHECKS):
                yield with_fields(node, keywords=keywords[:number] + keywords[number + 1 :])
        case ast.Name(id=name) if name in NAMES:
            yield with_fields(node, id=NAMES[name])
        case ast.Attribute(attr=name) if name in NAMES:
            yield with_fields(node, attr=NAMES[name])
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test) if not isinstance(test, ast.Compare):
            yield with_fields(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield ast.copy_location(ast.Pass(), node)


def with_fields(node: ast.AST, **fields) -> ast.AST:
    """Copy a node with other values in some fields."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def path_of(module: str) -> Path:
    """File of a module, whose name occurs once in the package or is given with its folder."""
    (path,) = (path for folder in ("cryotrans_jax", "experiments") for path in (ROOT / folder).rglob(f"{module}.py"))
    return path


def module_text(module: str) -> str:
    """The text of one of the package's modules."""
    return path_of(module).read_text()
