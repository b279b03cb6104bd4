"""Text to an expression: `amount > 50 and user == "u1"`. By hand, and nothing is ever executed.

    or         and ("or" and)*
    and        not ("and" not)*
    not        "not" not | comparison
    comparison sum [("==" | "!=" | "<" | "<=" | ">" | ">=") sum | ["not"] "in" "(" constants ")"
                   | "is" ["not"] "null"]
    sum        product (("+" | "-") product)*
    product    unary (("*" | "/" | "//" | "%") unary)*
    unary      "-" unary | value ("." name)*
    value      constant | name | function "(" or ("," or)* ")" | "(" or ")"

Also understood: `=` for `==`, `<>` for `!=`, keywords in any case, text in single quotes. Names
that are no plain words stand in backticks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isinf
from typing import Final, NamedTuple, NoReturn, TypeVar

from millstream import UsageError

from .expression_calls import call
from .expression_text import KEYWORDS
from .expression_tree import (
    DEPTH_MAX,
    Column,
    IsNull,
    Literal,
    Member,
    Negate,
    Not,
    Operation,
    Tree,
    comparison,
    conjunction,
    literal,
    membership,
    require_shallow,
)

LENGTH_MAX: Final = 10_000
"""Characters of an expression."""

_TOKEN: Final = re.compile(
    r"""\s*(?:
    (?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |`(?P<quoted>(?:[^`]|``)+)`
    |"(?P<double>(?:[^"\\]|\\.)*)"
    |'(?P<single>(?:[^'\\]|\\.)*)'
    |(?P<symbol><=|>=|==|!=|<>|//|[=<>+\-*/%().,])
    |(?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPED: Final = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "'": "'", "\\": "\\"}
_COMPARISONS: Final = {
    "=": "==",
    "==": "==",
    "!=": "!=",
    "<>": "!=",
    "<": "<",
    "<=": "<=",
    ">": ">",
    ">=": ">=",
}
_CONSTANTS: Final = {"null": None, "true": True, "false": False}
_INSTEAD: Final = {"&": "and", "|": "or", "!": "not", "~": "not", '"': "a closing quote"}

T = TypeVar("T")


class _Token(NamedTuple):
    kind: str
    """number, text, name, keyword, symbol or end."""
    text: str
    start: int


def parse(text: str) -> Tree:
    """The tree of an expression.

    Raises:
        UsageError: It is none. The message shows where, and what was expected there.
    """
    if len(text) > LENGTH_MAX:
        raise UsageError(f"an expression has at most {LENGTH_MAX} characters, not {len(text)}")
    parser = _Parser(text)
    tree = parser.disjunction()
    if parser.token.kind != "end":
        parser.fail("an operator or the end")
    require_shallow(tree)
    return tree


class _Parser:
    """One method per rule of the grammar, and a token of look-ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._depth = 0
        self.token = self._next()

    # --- rules ---------------------------------------------------------------------------------

    def disjunction(self) -> Tree:
        """A whole expression."""
        self._depth += 1
        if self._depth > DEPTH_MAX:
            self._stop(f"an expression may be nested {DEPTH_MAX} deep", self.token.start)
        operands = [self._conjunction()]
        while self._take("keyword", "or"):
            operands.append(self._conjunction())
        self._depth -= 1
        return operands[0] if len(operands) == 1 else conjunction("or", tuple(operands))

    def _conjunction(self) -> Tree:
        operands = [self._negation()]
        while self._take("keyword", "and"):
            operands.append(self._negation())
        return operands[0] if len(operands) == 1 else conjunction("and", tuple(operands))

    def _negation(self) -> Tree:
        count = 0
        while self._take("keyword", "not"):
            count = self._bounded(count + 1)
        tree = self._comparison()
        for _ in range(count):
            tree = Not(tree)
        return tree

    def _comparison(self) -> Tree:
        left = self._sum()
        start = self.token.start
        tree = left
        if self.token.kind == "symbol" and self.token.text in _COMPARISONS:
            operator = _COMPARISONS[self._advance().text]
            right = self._sum()
            tree = self._checked(start, lambda: comparison(operator, left, right))  # type: ignore[arg-type]  # one of them
        elif self._take("keyword", "is"):
            negative = self._take("keyword", "not")
            self._require("keyword", "null")
            tree = Not(IsNull(left)) if negative else IsNull(left)
        elif self.token in {_Token("keyword", "in", start), _Token("keyword", "not", start)}:
            negative = self._take("keyword", "not")
            self._require("keyword", "in")
            values = self._constants()
            inside = self._checked(start, lambda: membership(left, values))
            tree = Not(inside) if negative else inside
        if tree is not left and self.token.kind == "symbol" and self.token.text in _COMPARISONS:
            self.fail("`and`, `or` or the end: comparisons do not chain")
        return tree

    def _constants(self) -> tuple[Literal, ...]:
        self._require("symbol", "(")
        values: list[Literal] = []
        while not self._take("symbol", ")"):
            if values:
                self._require("symbol", ",")
            start = self.token.start
            value = self._unary()
            if not isinstance(value, Literal):
                self._stop("expected a constant", start)
            values.append(value)
        return tuple(values)

    def _sum(self) -> Tree:
        return self._chain(("+", "-"), self._product)

    def _product(self) -> Tree:
        return self._chain(("*", "/", "//", "%"), self._unary)

    def _chain(self, operators: tuple[str, ...], operand: Callable[[], Tree]) -> Tree:
        tree = operand()
        count = 0
        while self.token.kind == "symbol" and self.token.text in operators:
            operator = self._advance().text
            count = self._bounded(count + 1)
            tree = Operation(operator, tree, operand())  # type: ignore[arg-type]  # one of them
        return tree

    def _unary(self) -> Tree:
        count = 0
        while self._take("symbol", "-"):
            count = self._bounded(count + 1)
        number = self.token.kind == "number" or self.token == _Token(
            "name", "inf", self.token.start
        )
        if count and number:
            # The sign next to a number is part of it.
            count -= 1
            tree: Tree = self._number("-")
        else:
            tree = self._value()
        for _ in range(count):
            tree = Negate(tree)
        return tree

    def _value(self) -> Tree:
        tree = self._primary()
        count = 0
        while self._take("symbol", "."):
            count = self._bounded(count + 1)
            if self.token.kind not in {"name", "column"}:
                self.fail("a name")
            tree = Member(tree, self._advance().text)
        return tree

    def _primary(self) -> Tree:
        token = self.token
        tree: Tree
        if token.kind == "number" or (token.kind, token.text) in {("name", "nan"), ("name", "inf")}:
            tree = self._number("")
        elif token.kind == "text":
            tree = Literal(self._advance().text)
        elif token.kind == "keyword" and token.text in _CONSTANTS:
            tree = Literal(_CONSTANTS[self._advance().text])
        elif token.kind in {"name", "column"}:
            tree = Column(self._advance().text)
            if token.kind == "name" and self._take("symbol", "("):
                tree = self._call(token)
        elif self._take("symbol", "("):
            tree = self.disjunction()
            self._require("symbol", ")")
        else:
            self.fail("a value")
        return tree

    def _call(self, name: _Token) -> Tree:
        operands: list[Tree] = []
        while not self._take("symbol", ")"):
            if operands:
                self._require("symbol", ",")
            operands.append(self.disjunction())
        return self._checked(name.start, lambda: call(name.text, operands))

    def _number(self, sign: str) -> Literal:
        token = self._advance()
        if token.text.isdecimal():
            if len(token.text.lstrip("0")) > 19:
                self._stop("the number does not fit into 64 bits", token.start)
            return self._checked(token.start, lambda: literal(int(sign + token.text)))
        value = float(sign + token.text)
        if token.kind == "number" and isinf(value):
            self._stop("the number is too large for a float", token.start)
        return Literal(value)

    # --- tokens --------------------------------------------------------------------------------

    def _next(self) -> _Token:
        match = _TOKEN.match(self._text, self._position)
        if match is None:
            start = len(self._text) - len(self._text[self._position :].lstrip())
            found = self._text[start]
            instead = f"; write {_INSTEAD[found]}" if found in _INSTEAD else ""
            self._stop(f"{found!r} means nothing here{instead}", start)
        self._position = match.end()
        kind = match.lastgroup or "end"
        start = match.start(kind)
        if kind in {"double", "single"}:
            return _Token("text", self._unescape(match.group(kind), start), start - 1)
        if kind == "quoted":
            return _Token("column", match.group(kind).replace("``", "`"), start - 1)
        text = match.group(kind)
        if kind == "name" and text.lower() in KEYWORDS:
            return _Token("keyword", text.lower(), start)
        return _Token(kind, text, start)

    def _unescape(self, text: str, start: int) -> str:
        def replacement(match: re.Match[str]) -> str:
            code = match.group(1)
            if len(code) > 1:
                try:
                    return chr(int(code[1:], 16))
                except ValueError:
                    self._stop(f"\\{code} is no character", start + match.start())
            if code not in _ESCAPED:
                self._stop(f"\\{code} is no escape; a backslash is \\\\", start + match.start())
            return _ESCAPED[code]

        return _ESCAPE.sub(replacement, text)

    def _advance(self) -> _Token:
        token = self.token
        self.token = self._next()
        return token

    def _take(self, kind: str, text: str) -> bool:
        if (self.token.kind, self.token.text) != (kind, text):
            return False
        self._advance()
        return True

    def _require(self, kind: str, text: str) -> None:
        if not self._take(kind, text):
            self.fail(f"`{text}`")

    # --- errors --------------------------------------------------------------------------------

    def _bounded(self, count: int) -> int:
        if count > DEPTH_MAX:
            self._stop(f"an expression may be nested {DEPTH_MAX} deep", self.token.start)
        return count

    def _checked(self, start: int, build: Callable[[], T]) -> T:
        """What `build` makes; its complaint is told with the place."""
        try:
            return build()
        except UsageError as error:
            self._stop(str(error), start, error)

    def fail(self, expected: str) -> NoReturn:
        """Say what was expected at the token that is there."""
        token = self.token
        found = "the end" if token.kind == "end" else repr(self._text[token.start :][:20])
        self._stop(f"expected {expected}, found {found}", token.start)

    def _stop(self, problem: str, start: int, cause: Exception | None = None) -> NoReturn:
        # A long expression is shown around the place only.
        shown_from = max(0, start - 60)
        shown = self._text[shown_from : start + 20].replace("\n", " ").replace("\t", " ")
        marker = " " * (start - shown_from) + "^"
        raise UsageError(
            f"position {start + 1} of the expression: {problem}\n  {shown}\n  {marker}"
        ) from cause
