"""Makes wrong models out of good ones, always the same ones.

usage: wrong_models.py DIRECTORY [--count 200] [--seed N] BASE.tflite …

Five of seven are well-formed flatbuffers whose meaning is damaged in one to three places: shapes that their data
do not have, operators that read what is written later, indexes and axes beyond everything, quantization that no
kernel expects, graphs that call each other wrong. Half of those leave inputs and outputs of the model alone, so
that nothing but the runtime can notice. The others are damaged bytes: cut off, overwritten, bits flipped.
DIRECTORY gets one file each and `index.json`, a list of

    {"file": name, "base": path, "edit": what was changed, "well_formed": true | false}

Every model is drawn from its own generator, named by the seed, the base and its number, so that any one of
them can be made again alone.
"""

import argparse
import json
import pathlib
import random
import sys

import graph

# Found by trying seeds: among its models are several that end a process that runs them (see `wrong_models.rs`).
SEED = 1

# Sizes and indices that programs forget about.
ODD_NUMBERS = [0, -1, -2, 1, 2, 3, 7, 255, 1024, 65536, 2**30, 2**31 - 1, -(2**31)]


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("bases", nargs="+", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(arguments)
    options.directory.mkdir(parents=True, exist_ok=True)
    index = []
    for number in range(options.count):
        base = options.bases[number % len(options.bases)]
        # Seven and the number of bases have no divisor in common: every base gets both kinds.
        well_formed = number % 7 < 5
        made, edit = make(base.read_bytes(), f"{options.seed}/{base_name(base)}/{number}", well_formed)
        name = f"{number:03}.tflite"
        (options.directory / name).write_bytes(made)
        index.append({"file": name, "base": str(base), "edit": edit, "well_formed": well_formed})
    (options.directory / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    print(f"{len(index)} wrong models of seed {options.seed} in {options.directory}", file=sys.stderr)


def base_name(path):
    """Names a base without saying where it lies: samples are all called model.tflite."""
    return f"{path.parent.name}/{path.name}"


def make(good, name, well_formed):
    """One wrong model and what is wrong with it. An edit that changed nothing is drawn again."""
    generator = random.Random(name)
    unchanged = graph.save(graph.load(good)) if well_formed else good
    while True:
        wrong, edit = (wrong_field if well_formed else wrong_bytes)(good, generator)
        if wrong is not None and wrong != unchanged:
            return wrong, edit


# Well-formed files with one wrong field.


def wrong_field(good, generator):
    model = graph.load(good)
    edits = generator.choice([FIELD_EDITS, INNER_EDITS])
    done = []
    for _ in range(generator.choice([1, 1, 2, 3])):
        edit = generator.choice(edits)
        # A branch of a condition may have nothing in it.
        subgraph = generator.choice([s for s in model.subgraphs if s.operators])
        what = edit(model, subgraph, generator)
        if what is not None:
            done.append(f"{edit.__name__}: {what}")
    if not done:
        return None, None
    try:
        return graph.save(model), "; ".join(done)
    except Exception:  # the value does not fit the field's type: no flatbuffer can say it
        return None, None


def shape(_model, subgraph, generator):
    tensor = generator.choice(subgraph.tensors)
    old = graph.ints(tensor.shape)
    if not old:
        return None
    new = list(old)
    new[generator.randrange(len(new))] = generator.choice(ODD_NUMBERS + [generator.randrange(1, 512)] * 6)
    tensor.shape = new
    return f"{old} -> {new}"


def element_type(_model, subgraph, generator):
    tensor = generator.choice(subgraph.tensors)
    old, tensor.type = tensor.type, generator.randrange(0, 19)
    return f"{old} -> {tensor.type}"


def buffer_index(model, subgraph, generator):
    tensor = generator.choice(subgraph.tensors)
    old = tensor.buffer
    tensor.buffer = generator.choice([generator.randrange(len(model.buffers)), len(model.buffers) + 5, 0])
    return f"{old} -> {tensor.buffer}"


def buffer_length(model, _subgraph, generator):
    filled = [b for b in model.buffers if b.data is not None and len(b.data) > 0]
    if not filled:
        return None
    buffer = generator.choice(filled)
    old = len(buffer.data)
    buffer.data = bytes(bytearray(buffer.data))[: generator.randrange(old)]
    return f"{old} -> {len(buffer.data)}"


def operator_input(_model, subgraph, generator):
    return operator_index(subgraph, generator, "inputs")


def operator_output(_model, subgraph, generator):
    return operator_index(subgraph, generator, "outputs")


def operator_index(subgraph, generator, field):
    operator = generator.choice(subgraph.operators)
    old = graph.ints(getattr(operator, field))
    if not old:
        return None
    tensors = len(subgraph.tensors)
    new = list(old)
    new[generator.randrange(len(new))] = generator.choice(
        [generator.randrange(tensors), -1, -5, tensors + 3, 2**31 - 1]
    )
    setattr(operator, field, generator.choice([new, new, new, new, []]))
    return f"{old} -> {getattr(operator, field)}"


def operator_code_index(model, subgraph, generator):
    operator = generator.choice(subgraph.operators)
    old = operator.opcodeIndex
    operator.opcodeIndex = generator.choice(
        [generator.randrange(len(model.operatorCodes)), len(model.operatorCodes) + 1, 2**31]
    )
    return f"{old} -> {operator.opcodeIndex}"


def operator_code(model, _subgraph, generator):
    code = generator.choice(model.operatorCodes)
    old, new = code.builtinCode, generator.randrange(0, 160)
    code.builtinCode, code.deprecatedBuiltinCode = new, min(new, 127)
    return f"{old} -> {new}"


def operator_option(_model, subgraph, generator):
    options = generator.choice(subgraph.operators).builtinOptions
    fields = [] if options is None else [k for k, v in vars(options).items() if type(v) is int]
    if not fields:
        return None
    field = generator.choice(sorted(fields))
    is_enumeration = any(word in field for word in ("Function", "adding", "Type", "Format"))
    old = getattr(options, field)
    new = generator.randrange(0, 5) if is_enumeration else generator.choice([0, -1, 1, 2, 100, 2**31 - 1])
    setattr(options, field, new)
    return f"{field} {old} -> {new}"


def quantization(_model, subgraph, generator):
    quantized = [t.quantization for t in subgraph.tensors if t.quantization is not None]
    if not quantized:
        return None
    chosen = generator.choice(quantized)
    field, values = generator.choice(
        [
            ("scale", [[0.0], [float("nan")], [-1.0], [], [1e30], [0.1] * 5]),
            ("zeroPoint", [[10**9], [], [0] * 5]),
            ("quantizedDimension", [-1, 9]),
        ]
    )
    value = generator.choice(values)
    setattr(chosen, field, value)
    return f"{field} -> {value}"


def graph_end(_model, subgraph, generator):
    field = generator.choice(["inputs", "outputs"])
    old = graph.ints(getattr(subgraph, field))
    tensors = len(subgraph.tensors)
    wrong = generator.choice([generator.randrange(tensors), -1, tensors + 1])
    new = generator.choice([[wrong], old + [wrong], []])
    setattr(subgraph, field, new)
    return f"{field} {old} -> {new}"


# Damage behind the inputs and outputs: `tensors` and `fleetctl` find nothing wrong with such a model.


def inner_tensors(subgraph):
    ends = set(graph.ints(subgraph.inputs)) | set(graph.ints(subgraph.outputs))
    return [tensor for index, tensor in enumerate(subgraph.tensors) if index not in ends]


def constants(model, subgraph):
    """Tensors with data, and their buffers."""
    found = [(t, model.buffers[t.buffer]) for t in inner_tensors(subgraph) if t.buffer < len(model.buffers)]
    return [(t, b) for t, b in found if b.data is not None and len(b.data) > 0]


def inner_shape(_model, subgraph, generator):
    """More or fewer elements, dimensions swapped, or another rank: the data stay as they are."""
    inner = [t for t in inner_tensors(subgraph) if graph.ints(t.shape)]
    if not inner:
        return None
    tensor = generator.choice(inner)
    old = graph.ints(tensor.shape)
    grown = [d * generator.choice([1, 2, 64]) for d in old]
    new = generator.choice([old[::-1], old[1:], old + [1], [1] + old, grown, [max(d // 2, 1) for d in old]])
    tensor.shape = new
    return f"{old} -> {new}"


def constant_length(model, subgraph, generator):
    found = constants(model, subgraph)
    if not found:
        return None
    _, buffer = generator.choice(found)
    old = bytes(bytearray(buffer.data))
    buffer.data = generator.choice([old[: len(old) // 2], old[:1], old + old, old + b"\x7f"])
    return f"{len(old)} -> {len(buffer.data)}"


def constant_values(model, subgraph, generator):
    """Axes, shapes, indexes and paddings are constants too: these point far away."""
    small = [(t, b) for t, b in constants(model, subgraph) if t.type in (2, 4) and len(b.data) <= 64]
    found = small or constants(model, subgraph)
    if not found:
        return None
    _, buffer = generator.choice(found)
    word = generator.choice([2**31 - 1, 2**32 - 1, 2**31, 100_000, 0xFFFFFFFE, 0x7F800000, 0x7FC00000])
    data = bytearray(buffer.data)
    for at in range(0, len(data) - 3, 4 * generator.choice([1, 1, 7])):
        data[at : at + 4] = word.to_bytes(4, "little")
    buffer.data = bytes(data)
    return f"{len(data)} bytes of {word:#x}"


def order(_model, subgraph, generator):
    """An operator runs before the one whose output it reads."""
    if len(subgraph.operators) < 2:
        return None
    one, other = generator.sample(range(len(subgraph.operators)), 2)
    operators = subgraph.operators
    operators[one], operators[other] = operators[other], operators[one]
    return f"operators {one} and {other} swapped"


def loop(_model, subgraph, generator):
    """An operator writes what it reads, a constant, an input, or what another one writes."""
    operator = generator.choice(subgraph.operators)
    inputs, outputs = graph.ints(operator.inputs), graph.ints(operator.outputs)
    if not inputs or not outputs:
        return None
    new = list(outputs)
    new[0] = generator.choice([i for i in inputs if i >= 0] + graph.ints(subgraph.inputs))
    operator.outputs = new
    return f"{outputs} -> {new}, inputs {inputs}"


def more_or_fewer_inputs(_model, subgraph, generator):
    operator = generator.choice(subgraph.operators)
    old = graph.ints(operator.inputs)
    if not old:
        return None
    new = generator.choice([old[:-1], old[1:], old + old, [-1] * len(old), old[::-1]])
    operator.inputs = new
    return f"{old} -> {new}"


def another_operator(model, subgraph, generator):
    """Another operator of the model, with this one's options: its kernel reads them as its own."""
    operator = generator.choice(subgraph.operators)
    old = operator.opcodeIndex
    operator.opcodeIndex = generator.randrange(len(model.operatorCodes))
    return f"{old} -> {operator.opcodeIndex}"


def no_options(_model, subgraph, generator):
    operator = generator.choice(subgraph.operators)
    if operator.builtinOptions is None:
        return None
    operator.builtinOptions, operator.builtinOptionsType = None, 0
    return "taken away"


def operator_version(model, _subgraph, generator):
    code = generator.choice(model.operatorCodes)
    old, code.version = code.version, generator.choice([0, -1, 2, 5, 11, 1000])
    return f"{old} -> {code.version}"


def channels(_model, subgraph, generator):
    """Quantization by channel, with as many scales as there are not."""
    quantized = [t.quantization for t in inner_tensors(subgraph) if t.quantization is not None]
    quantized = [q for q in quantized if q.scale is not None and len(q.scale) > 0]
    if not quantized:
        return None
    chosen = generator.choice(quantized)
    count = generator.choice([0, 2, 3, 1000])
    chosen.scale = [generator.choice([0.5, 0.0, 1e-40, float("inf")])] * count
    chosen.zeroPoint = [generator.choice([0, 127, -129, 2**40])] * generator.choice([count, 1])
    chosen.quantizedDimension = generator.choice([0, 3, 4, -1, 2**31 - 1])
    return f"{count} scales in dimension {chosen.quantizedDimension}"


def variable(_model, subgraph, generator):
    tensor = generator.choice(subgraph.tensors)
    tensor.isVariable = not tensor.isVariable
    return f"{tensor.isVariable}"


def sparsity(model, subgraph, generator):
    """A constant that says of itself that most of it is left out."""
    found = constants(model, subgraph)
    if not found:
        return None
    tensor, _ = generator.choice(found)
    rank = len(graph.ints(tensor.shape))
    parameters = graph.schema.SparsityParametersT()
    parameters.traversalOrder = generator.choice([list(range(rank)), [9] * rank, []])
    parameters.blockMap = []
    parameters.dimMetadata = []
    for _ in range(generator.choice([rank, rank + 3, 1])):
        metadata = graph.schema.DimensionMetadataT()
        metadata.format = generator.choice([0, 1])
        metadata.denseSize = generator.choice([0, 1, 100_000, 2**31 - 1])
        segments = graph.schema.Int32VectorT()
        segments.values = generator.choice([[], [0, 2**30], [5, 1]])
        metadata.arraySegmentsType = metadata.arrayIndicesType = 1
        metadata.arraySegments = metadata.arrayIndices = segments
        parameters.dimMetadata.append(metadata)
    tensor.sparsity = parameters
    return f"{len(parameters.dimMetadata)} dimensions of {rank}"


def another_graph(model, subgraph, generator):
    """One graph more, one less, or a signature and a call that mean another one."""
    what = generator.choice(["copy", "empty", "signature", "call"])
    if what == "copy":
        model.subgraphs.append(subgraph)
    elif what == "empty":
        empty = graph.schema.SubGraphT()
        empty.tensors, empty.inputs, empty.outputs, empty.operators = [], [], [], []
        model.subgraphs.insert(generator.choice([1, len(model.subgraphs)]), empty)
    elif what == "signature":
        if not model.signatureDefs:
            return None
        model.signatureDefs[0].subgraphIndex = generator.choice([len(model.subgraphs), 2**31, len(model.subgraphs) - 1])
    else:
        fields = ("initSubgraphIndex", "condSubgraphIndex", "bodySubgraphIndex", "thenSubgraphIndex", "subgraph")
        calls = [
            (operator.builtinOptions, field)
            for operator in subgraph.operators
            for field in fields
            if operator.builtinOptions is not None and hasattr(operator.builtinOptions, field)
        ]
        if not calls:
            return None
        options, field = generator.choice(calls)
        # A graph that calls itself has no end.
        setattr(options, field, generator.choice([0, len(model.subgraphs), 2**31 - 1, -1]))
    return what


INNER_EDITS = [
    inner_shape,
    inner_shape,
    constant_length,
    constant_values,
    order,
    loop,
    more_or_fewer_inputs,
    another_operator,
    no_options,
    operator_version,
    channels,
    variable,
    sparsity,
    another_graph,
]

FIELD_EDITS = [
    shape,
    element_type,
    buffer_index,
    buffer_length,
    operator_input,
    operator_output,
    operator_code_index,
    operator_code,
    operator_option,
    quantization,
    graph_end,
]

# Damaged bytes.


def wrong_bytes(good, generator):
    edit = generator.choice(BYTE_EDITS)
    return edit(bytearray(good), generator), edit.__name__


def cut_off(data, generator):
    return bytes(data[: generator.randrange(len(data))])


def noise_behind_the_identifier(_data, generator):
    return b"\x1c\0\0\0TFL3" + generator.randbytes(generator.randrange(16, 4096))


def bytes_overwritten(data, generator):
    for _ in range(generator.choice([1, 4, 16, 64])):
        data[generator.randrange(len(data))] = generator.randrange(256)
    return bytes(data)


def bits_flipped(data, generator):
    for _ in range(generator.choice([1, 2, 3])):
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return bytes(data)


def words_overwritten(data, generator):
    """Offsets, sizes and dimensions are 32-bit words: these become numbers that are hard on a reader."""
    for _ in range(generator.choice([1, 1, 2])):
        at = generator.randrange(len(data) // 4) * 4
        value = generator.choice(
            [0, 2**32 - 1, 2**31 - 1, 2**31, generator.getrandbits(32), generator.randrange(1024), len(data)]
        )
        data[at : at + 4] = value.to_bytes(4, "little")
    return bytes(data)


BYTE_EDITS = [cut_off, noise_behind_the_identifier, bytes_overwritten, bits_flipped, words_overwritten]


if __name__ == "__main__":
    main(sys.argv[1:])
