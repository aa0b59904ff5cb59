"""Finding single-entry, single-exit groups of nodes structurally: no names, no patterns of one framework."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

from opadapt.ir.canonical import digest
from opadapt.ir.program import Program
from opadapt.model.graph import Model, reads

LARGEST = (
    24  # nodes in a block: beyond this a search has no chance, and joins far apart would swallow the model
)
LONGEST = 160  # nodes in a whole stage: 32 residual blocks of five
REPEATED = 3  # equal blocks in a row that make a stage

HEADS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_UNARY = frozenset(
    {
        "Relu",
        "Clip",
        "LeakyRelu",
        "PRelu",
        "Elu",
        "Selu",
        "Celu",
        "HardSwish",
        "HardSigmoid",
        "Sigmoid",
        "Tanh",
    }
    | {"Gelu", "Mish", "Softplus", "Softsign", "ThresholdedRelu", "BatchNormalization"}
)
_WITH_CONSTANT = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min"})
_PARTS = (
    _UNARY | _WITH_CONSTANT | {"Erf", "Pow", "Sqrt", "Exp", "Log", "Neg", "Abs", "Reciprocal", "Softsign"}
)


@dataclass(frozen=True)
class Span:
    """Nodes in topological order, the activations they read from outside, the one tensor that leaves."""

    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str


class Finder:
    """Structural questions about one model."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @cached_property
    def _outputs(self) -> frozenset[str]:
        return frozenset(self.model.outputs)

    def activations(self, name: str) -> tuple[str, ...]:
        """The inputs of a node that are not constant."""
        return tuple(t for t in reads(self.model.nodes[name]) if t not in self.model.initializers)

    def span(self, names: set[str]) -> Span | None:
        """The names as a span, or None where more than one tensor leaves, or an inner one is used outside."""
        ordered = tuple(sorted(names, key=self.model.position.__getitem__))
        made = {t for name in ordered for t in self.model.nodes[name].output if t}
        read = dict.fromkeys(t for name in ordered for t in self.activations(name))
        leaving = [
            t
            for t in made
            if t in self._outputs or any(c not in names for c in self.model.consumers.get(t, ()))
        ]
        if len(leaving) != 1 or leaving[0] not in self.model.nodes[ordered[-1]].output:
            return None
        return Span(ordered, tuple(t for t in read if t not in made), leaving[0])

    def only_consumer(self, name: str) -> str | None:
        """The one node that reads a node's result, None where there are others or it leaves the model."""
        made = [t for t in self.model.nodes[name].output if t in self.model.consumers or t in self._outputs]
        if len(made) != 1 or made[0] in self._outputs:
            return None
        readers = self.model.consumers[made[0]]
        return readers[0] if len(readers) == 1 else None

    def followers(self, name: str) -> tuple[str, ...]:
        """The activations, batch normalisations and constant scales and shifts right after a node.

        An activation made of several operators (hard swish, GELU) counts as one.
        """
        found: list[str] = []
        last = name
        while True:
            after = self.only_consumer(last)
            if after is not None and self._elementwise(after):
                found.append(after)
            elif after is None and (composite := self._composite_after(last)):
                found.extend(composite)
            else:
                return tuple(found)
            last = found[-1]

    def _composite_after(self, name: str) -> tuple[str, ...]:
        """The element-wise nodes from a node's result to the join of all its readers; empty for none."""
        results = [t for t in self.model.nodes[name].output if t in self._composites]
        if not results or any(t in self._outputs for t in self.model.nodes[name].output):
            return ()
        inside = self._composites[results[0]]
        readers = self.model.consumers[results[0]]
        return tuple(sorted(inside, key=self.model.position.__getitem__)) if set(readers) <= inside else ()

    @cached_property
    def _composites(self) -> dict[str, set[str]]:
        """Entry tensor -> the nodes up to the nearest join of it with itself, where all are element-wise."""
        found: dict[str, set[str]] = {}
        for name in self.model.nodes:
            if len(self.activations(name)) < 2 or self.model.nodes[name].op_type not in _PARTS:
                continue
            back = self.back(name)
            if back is not None and all(self.model.nodes[n].op_type in _PARTS for n in back[0]):
                found.setdefault(back[1], back[0])
        return found

    def _elementwise(self, name: str) -> bool:
        node = self.model.nodes[name]
        one = len(self.activations(name)) == 1
        return one and (node.op_type in _UNARY or (node.op_type in _WITH_CONSTANT and len(node.input) == 2))

    def chains(self) -> Iterator[tuple[str, ...]]:
        """Every convolution or matrix product with what follows it directly; the product may stand alone."""
        for name, node in self.model.nodes.items():
            if node.op_type in HEADS and len(self.activations(name)) == 1:
                yield (name, *self.followers(name))

    def sequences(self) -> Iterator[tuple[str, ...]]:
        """Two chains in a row (conv-relu-conv, depthwise-pointwise); three where the middle one is depthwise."""
        by_head = {chain[0]: chain for chain in self.chains()}
        for chain in by_head.values():
            second = by_head.get(self.only_consumer(chain[-1]) or "")
            if second is None:
                continue
            yield chain + second
            third = by_head.get(self.only_consumer(second[-1]) or "")
            if third is not None and self._depthwise(second[0]):
                yield chain + second + third

    def _depthwise(self, name: str) -> bool:
        node = self.model.nodes[name]
        weight = self.model.initializers.get(node.input[1]) if node.op_type == "Conv" else None
        return weight is not None and weight.ndim > 2 and weight.shape[1] == 1 and weight.shape[0] > 1

    def joins(self) -> Iterator[tuple[str, ...]]:
        """For every node that joins activations: all nodes back to the nearest tensor they all come from, with
        the activation that follows; then each operand's branch alone, where it computes something.
        """
        for name in self.model.nodes:
            if len(self.activations(name)) < 2:
                continue
            found = self.back(name)
            if found is None:
                continue
            inside, entry = found
            yield (*inside, *self.followers(name))
            for operand in self.activations(name):
                branch = self.back_to(operand, entry)
                if any(self.model.nodes[n].op_type in HEADS for n in branch):
                    yield tuple(branch)

    def back(self, name: str) -> tuple[set[str], str] | None:
        """Nodes from the nearest single entry up to and with ``name``; None where it is too far.

        The latest producer of the frontier is taken in until one tensor is left: the nearest tensor through
        which every path to ``name`` goes (its immediate dominator, when all paths start at one model input).
        """
        inside, frontier = {name}, set(self.activations(name))
        while len(frontier) > 1:
            made_here = [t for t in frontier if t in self.model.producer]
            if len(inside) >= LARGEST or not made_here:
                return None
            latest = max(made_here, key=lambda t: self.model.position[self.model.producer[t]])
            node = self.model.producer[latest]
            inside.add(node)
            frontier -= set(self.model.nodes[node].output)
            frontier |= set(self.activations(node))
        return (inside, frontier.pop()) if frontier else None

    def back_to(self, tensor: str, entry: str) -> set[str]:
        """Every node between ``entry`` and the making of ``tensor``."""
        inside: set[str] = set()
        stack = [tensor]
        while stack:
            wanted = stack.pop()
            node = self.model.producer.get(wanted)
            if wanted != entry and node is not None and node not in inside:
                inside.add(node)
                stack.extend(self.activations(node))
        return inside

    def stages(self, programs: Mapping[Span, Program]) -> Iterator[tuple[str, ...]]:
        """The longest rows of at least three equal spans, each of which alone reads what the one before it gives:
        the residual blocks of one stage, say, without the first one if that halves the size.

        ``programs`` are the spans to look among, by what they compute. A row inside another is left out, and one of
        more than ``LONGEST`` nodes is cut.
        """
        following = self._following(programs)
        later = set(following.values())
        rows = [_row(first, following) for first in following if first not in later]
        rows = [row for row in rows if len(row) >= REPEATED]
        known: list[set[str]] = []
        for row in sorted(rows, key=lambda row: -sum(len(span.nodes) for span in row)):
            inside = {name for span in row for name in span.nodes}
            if any(inside <= other for other in known):
                continue
            known.append(inside)
            most = LONGEST // len(row[0].nodes)
            for part in (row[i : i + most] for i in range(0, len(row), most)):
                if len(part) >= REPEATED:
                    yield tuple(name for span in part for name in span.nodes)

    def _following(self, programs: Mapping[Span, Program]) -> dict[Span, Span]:
        """For each span the equal one that alone reads its output, where there is one. Programs are compared where
        the operators agree."""
        starting: dict[tuple[str, ...], list[Span]] = {}
        for span in programs:
            if self._repeatable(span):
                starting.setdefault((span.inputs[0], *self._operators(span)), []).append(span)
        form = cache(lambda span: digest(programs[span]))
        found: dict[Span, Span] = {}
        for (_, *operators), spans in starting.items():
            for span in spans:
                for after in starting.get((span.output, *operators), ()):
                    if self._alone_reads(after, span.output) and form(after) == form(span):
                        found[span] = after
        return found

    def _repeatable(self, span: Span) -> bool:
        """Whether a span has weights, and its output could be its input."""
        types = self.model.types
        computes = any(self.model.nodes[name].op_type in HEADS for name in span.nodes)
        return computes and len(span.inputs) == 1 and types[span.inputs[0]] == types[span.output]

    def _operators(self, span: Span) -> tuple[str, ...]:
        return tuple(self.model.nodes[name].op_type for name in span.nodes)

    def _alone_reads(self, span: Span, tensor: str) -> bool:
        return tensor not in self._outputs and set(self.model.consumers.get(tensor, ())) <= set(span.nodes)


def _row(first: Span, following: Mapping[Span, Span]) -> list[Span]:
    row = [first]
    while row[-1] in following:
        row.append(following[row[-1]])
    return row
