"""Makes wrong models out of good ones, always the same ones.

usage: wrong_models.py DIRECTORY [--count 200] [--seed N] BASE.tflite …

Six of ten are well-formed flatbuffers in which one field is wrong: a shape, a type, an index, an option. The
others are damaged bytes: cut off, overwritten, bits flipped. Both get past a reader that only looks at the
file's head. DIRECTORY gets one file each and `index.json`, a list of

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
        well_formed = number % 10 < 6
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
    edit = generator.choice(FIELD_EDITS)
    subgraph = generator.choice(model.subgraphs)
    what = edit(model, subgraph, generator)
    if what is None:
        return None, None
    try:
        return graph.save(model), f"{edit.__name__}: {what}"
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
