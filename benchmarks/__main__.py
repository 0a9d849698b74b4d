"""`python benchmarks` (or `make bench`): compare ours with its peers, and write the results to benchmarks/results.md.

It takes an hour and a half on two cores. Given names of parts (shards, speed, roformer, llama, memory, floor, length,
recipe, monitors, stream, start, combine, update_end, gpu_code, predicted, exchanges, checkpoint_planning), it measures
only these and replaces their sections of results.md.
"""

import os
import platform
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from measure import draw, in_new_process, median_ratio, mixed_lengths, packed, peak_memory, race, timed, workload
from models import PRECISION

from rotary_foundry.utils.allocator import keep_freed_memory

RESULTS = Path(__file__).parent / "results.md"
WORKLOADS = {"uniform 512": [512] * 8, "mixed": mixed_lengths(), "one of 8192": [8192]}
ROFORMER_WORKLOADS = {"uniform 128": [128] * 32, "uniform 512": [512] * 8, "mixed": mixed_lengths()}
LLAMA_ROWS = (1024, 4096, 8192)
LLAMA_DOCUMENTS = (1024,)
LLAMA_WORKLOADS = {
    **{f"row of {row}, packed": packed(row) for row in LLAMA_ROWS},
    **{f"one of {length}": [length] for length in LLAMA_DOCUMENTS},
    "mixed": mixed_lengths(),
}
OURS = ("ours", "ours, compiled")
ROFORMER = ("RoFormerV2", "RoFormerV2, compiled")
LLAMA = ("Llama", "Llama, compiled")

# for each kind of work the peers, and the target ratio of our tokens per second to theirs; None: shown without a target
TARGETS = {
    "training": {
        "transformers": {"uniform 512": 1.25, "mixed": 3.9, "one of 8192": 2.3},
        "transformers, sparse_prediction": {"uniform 512": None},
    },
    "encoding": {
        "transformers": {"uniform 512": 1.2, "mixed": 2.5, "one of 8192": 2.5},
        "DeBERTa": {"uniform 512": 3.0, "mixed": 5.0},
    },
    "predicting": {
        "transformers": {"uniform 512": 1.2, "mixed": 2.5},
        "DeBERTa": {"uniform 512": 3.0, "mixed": 5.0},
    },
}
ROFORMER_PEERS = {
    "RoFormerV2 with biases and gains": {"uniform 128": None, "uniform 512": None},
    "transformers' RoFormer": {"uniform 128": None, "uniform 512": None, "mixed": None},
}
LLAMA_TARGETS = {
    "training": {
        "transformers' Llama": {
            **{f"row of {row}, packed": 1.2 for row in LLAMA_ROWS},
            **{f"one of {length}": None for length in LLAMA_DOCUMENTS},
            "mixed": 2.0,
        },
    },
}
# kind of work, length of the one document, peer, and the most of the peer's memory that ours may take; None: no target
MEMORY = [
    ("training", 8192, "transformers", 0.6),
    ("encoding", 4096, "transformers", None),
    ("encoding", 4096, "DeBERTa", 0.1),
    ("predicting", 4096, "DeBERTa", 0.1),
]


def speed() -> str:
    """Measure ModernBERT's tokens per second, and their ratio to the peers'."""
    return raced(OURS, TARGETS, WORKLOADS)


def roformer() -> str:
    """Measure the same for RoFormerV2, and count what the absence of biases and gains saves on a GPU."""
    from elementwise_traffic import TOKENS, estimated_seconds, of_a_layer

    targets = {"training": ROFORMER_PEERS, "encoding": ROFORMER_PEERS}
    measured = raced(ROFORMER, targets, ROFORMER_WORKLOADS, vocab_size=12_000)
    counts = {"RoFormerV2": of_a_layer(False), "with biases and gains": of_a_layer(True)}
    ours, rows = counts["RoFormerV2"], []
    for name, each in counts.items():
        kernels = [str(count.kernels) for count in (each.forward, each.backward)]
        moved = [f"{count.bytes / TOKENS / 1000:.0f}" for count in (each.forward, each.backward)]
        slower = [f"{estimated_seconds(each, n) / estimated_seconds(ours, n):.2f}×" for n in (128, 512)]
        rows.append([name, *kernels, *moved, f"{each.bytes / ours.bytes:.2f}×", *slower])
    heads = ["a layer of base", "kernels forward", "back", "kB per token forward", "back", "bytes"]
    counted = table(heads + [f"time at {n} tokens, estimated" for n in (128, 512)], rows)
    explained = (
        "The table above is measured, with small. The next is counted and not measured: the elementwise kernels of one "
        "layer of base, in eager bf16 on a GPU. The time is estimated for an H100, from their bytes and from the "
        "operations of products and attention."
    )
    return "\n\n".join([measured, explained, counted])


def llama() -> str:
    """Measure the same for Llama, whose documents are in one row on both sides, and its memory at the longest row."""
    measured = raced(LLAMA, LLAMA_TARGETS, LLAMA_WORKLOADS, vocab_size=49_152, long=3000)
    (ours, _), (theirs, fits) = (
        peak_memory(name, "training", packed(8192), vocab_size=49_152) for name in ("Llama", "transformers' Llama")
    )
    at_least, at_most = ("", "") if fits else ("> ", "< ")
    sizes = [f"{ours:,.0f}", f"{at_least}{theirs:,.0f}", f"{at_most}{ours / theirs:.2f}"]
    row = ["training", "row of 8192, packed", *sizes, "≤ 0.6"]
    heads = ["", "documents", "Llama, MiB", "transformers' Llama, MiB", "share", "target"]
    return "\n\n".join([measured, table(heads, [row])])


def raced(
    ours: tuple[str, ...],
    targets: dict,
    loads: dict[str, list[int]],
    vocab_size: int = 50_000,
    long: int = 5000,
) -> str:
    """Return a table that compares our contenders with their peers, for each kind of work and each load.

    With more than `long` tokens a turn takes minutes: one turn counts, and no contender is compiled.
    """
    rows = []
    for kind, peers in targets.items():
        for load, lengths in loads.items():
            peers_here = [peer for peer, targets in peers.items() if load in targets]
            if not peers_here:
                continue
            few = sum(lengths) > long
            here = ours[:1] if few else ours
            documents = draw(lengths, vocab_size)
            seconds = race([*here, *peers_here], kind, documents, rounds=1 if few else 3)
            for name in seconds:
                if seconds[name]:
                    rate = f"{documents.tokens / statistics.median(seconds[name]):,.0f}"
                    ratios = [f"{median_ratio(seconds[name], seconds[our]):.2f}×" for our in here] + [""] * few
                else:
                    rate, ratios = "does not fit in memory", [""] * len(ours)
                target = peers.get(name, {}).get(load)
                rows.append([kind, load, name, rate, *ratios, f"≥ {target}×" if target else ""])
                print(*rows[-1], sep=" | ", flush=True)
    faster = [f"{name}{',' * (',' in name)} is" for name in ours]
    return f"In {PRECISION}:\n\n" + table(["", "documents", "", "tokens per second", *faster, "target"], rows)


def memory() -> str:
    """Measure the peak memory of a step above that of the weights."""
    rows = []
    for kind, length, peer, target in MEMORY:
        (ours, _), (theirs, _) = (peak_memory(name, kind, [length]) for name in ("ours", peer))
        measured = [f"{ours:,.0f}", peer, f"{theirs:,.0f}", f"{ours / theirs:.2f}"]
        rows.append([kind, f"one of {length}", *measured, f"≤ {target}" if target else ""])
        print(*rows[-1], sep=" | ", flush=True)
    heads = ["", "documents", "ours, MiB", "peer", "peer, MiB", "share", "target"]
    return f"In {PRECISION}:\n\n" + table(heads, rows)


def floor() -> str:
    """Measure the floor's share of a training step, and profile the step."""
    from floor import product_rate, sdpa_rate
    from models import base_shape

    shape, rows, profiles = base_shape(), [], []
    for load, name in (("uniform 512", "ours"), ("uniform 512", "ours, compiled"), ("one of 8192", "ours")):
        lengths = WORKLOADS[load]
        documents = draw(lengths)
        masked = sum(int((labels >= 0).sum()) for labels in documents.labels)
        step = workload(name, "training", documents)
        step()
        products = shape.matmul_flops(documents.tokens, masked) / product_rate()
        attention = shape.attention_flops(lengths) / sdpa_rate(shape, lengths[0], len(lengths))
        seconds = statistics.median([timed(step) for _ in range(3)])
        share = f"{(products + attention) / seconds:.2f}"
        rows.append([load, name, f"{products:.2f}", f"{attention:.2f}", f"{seconds:.2f}", share, "≥ 0.6"])
        print(*rows[-1], sep=" | ", flush=True)
        profiles.append(f"{load}, {name}:\n\n{profile(step)}")
    heads = ["documents", "", "products, s", "attention, s", "the step, s", "share", "target"]
    return "\n\n".join([f"In {PRECISION}:", table(heads, rows), "Where the time of these steps goes:", *profiles])


def profile(step) -> str:
    """Return a table of the operations that take the most time of a step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        step()
    operations = sorted(recorded.key_averages(), key=lambda operation: -operation.self_cpu_time_total)
    total = sum(operation.self_cpu_time_total for operation in operations)
    rows = [[f"`{op.key}`", str(op.count), f"{op.self_cpu_time_total / total:.1%}"] for op in operations[:10]]
    return table(["operation", "calls", "share of the time"], rows)


def length() -> str:
    """Measure the cost by document length, and fit a line to it."""
    import cost_by_length

    seconds = cost_by_length.times()
    cost_by_length.draw_picture(seconds, processor())
    rows = []
    for name, values in seconds.items():
        intercept, slope, r_squared = cost_by_length.fit(values)
        fitted = f"{intercept:.2f} + {1000 * slope:.3f} · length / 1000"
        rows.append([name, *(f"{value:.2f}" for value in values), fitted, f"{r_squared:.3f}"])
        print(*rows[-1], sep=" | ", flush=True)
    heads = ["seconds at", *(f"{tokens:,}" for tokens in cost_by_length.LENGTHS), "fit", "R²"]
    return table(heads, rows) + f"\n\n![Cost against length]({cost_by_length.PICTURE.name})"


def recipe() -> str:
    """Measure the cost of clock, plan, masking and checkpoints in a nano run, and of a checkpoint of base."""
    from models import base_shape
    from recipe_cost import of_a_checkpoint, of_a_nano_run

    spent = of_a_nano_run()
    whole = spent["the run"].seconds
    rows = [
        [name, f"{each.calls:,}", f"{each.seconds:.2f}", f"{each.seconds / whole:.2%}"] for name, each in spent.items()
    ]
    print(*rows, sep="\n", flush=True)
    gigabytes, copying, writing = of_a_checkpoint(base_shape())
    return "\n\n".join(
        [
            table(["of a nano run, one process", "calls", "seconds", "share"], rows),
            f"A checkpoint of base, {gigabytes:.2f} GB by one process: {copying:.1f} s to copy it in memory, "
            f"{writing:.1f} s to write it.",
        ]
    )


def monitors() -> str:
    """Measure the cost of a run's monitors."""
    from monitor_cost import of_a_nano_run

    by_pairs, by_timers, pairs = in_new_process(of_a_nano_run)
    rows = [[f"{by_pairs:.2%}", f"{by_timers:.2%}", str(pairs), "< 1%"]]
    print(*rows[0], sep=" | ", flush=True)
    return table(["monitors, of a nano run's updates: by pairs", "by timers", "pairs", "target"], rows)


def shards() -> str:
    """Measure the speed from text to shards in megabytes per second, and the memory that it takes."""
    import data_speed as way

    with TemporaryDirectory() as folder:
        folder = Path(folder)
        large, small = (way.write_corpus(folder / f"{megabytes}", megabytes) for megabytes in (512, 128))
        tokenizer = way.make_tokenizer(small, folder / "tokenizer")
        races = [
            (512, "encode_batch_fast alone", "≥ 0.85", lambda: way.tokenise_alone(large, tokenizer), large),
            (
                128,
                "LLM Foundry's way",
                "≥ 2",
                lambda: way.seconds_of(way.foundrys_way(small, folder / "f", tokenizer)),
                small,
            ),
        ]
        rows = []
        for megabytes, name, target, run, corpus in races:
            taken = []
            for _ in range(2):
                ours = way.seconds_of(way.prepare(corpus, folder / "ours", tokenizer))
                taken.append((run(), ours))
                print(name, *(f"{seconds:.1f} s" for seconds in taken[-1]), sep=" | ", flush=True)
            theirs, ours = (list(seconds) for seconds in zip(*taken, strict=True))
            rates = [f"{megabytes / statistics.median(seconds):.2f}" for seconds in (theirs, ours)]
            rows.append([name, str(megabytes), *rates, f"{median_ratio(theirs, ours):.2f}", target])
        heads = ["text to shards beside", "MB of text", "theirs, MB per second", "ours", "ours ÷ theirs", "target"]
        speeds = table(heads, rows)
        growth = []
        for megabytes in (256, 1024, 10_240):
            with TemporaryDirectory(dir=folder) as work:
                corpus = way.write_corpus(Path(work, "corpus"), megabytes)
                most = way.memory_of(way.prepare(corpus, Path(work, "out"), tokenizer))
            growth.append([f"{megabytes:,}", f"{most:,.0f}", f"≤ {1e9 / 2**20:,.0f}"])
            print(*growth[-1], sep=" | ", flush=True)
    return speeds + "\n\n" + table(["MB of text", "MiB, all processes together", "target"], growth)


def stream() -> str:
    """Measure the tokens per second that the training stream delivers and that nano consumes."""
    from stream_rate import BASE_MICROBATCH, rate_in_microbatches_of_base, rates

    rows = []
    for stage in ("pretrain", "decay"):
        for num_workers in (0, 2):
            delivered, consumed = in_new_process(rates, stage, num_workers)
            ratio = f"{delivered / consumed:.0f}×"
            rows.append([stage, str(num_workers), f"{delivered:,.0f}", f"{consumed:,.0f}", ratio, "≥ 20×"])
            print(*rows[-1], sep=" | ", flush=True)
    heads = ["stage", "loader workers", "delivered, tokens/s", "consumed by nano", "ratio", "target"]
    of_base = ", ".join(f"{in_new_process(rate_in_microbatches_of_base, count):,.0f} by {count}" for count in (1, 2))
    return (
        f"{table(heads, rows)}\n\nIn microbatches of {BASE_MICROBATCH} rows, as base's, tokens/s by workers: {of_base}."
    )


def start() -> str:
    """Measure the start of a loader on a corpus of 1.7e9 rows: time, and memory above that with a tiny corpus."""
    from loader_start import STEPS, starts

    rows = []
    for ranks, mixed, steps, of_rank, of_worker in in_new_process(starts):
        taken = [f"{seconds:.2f} ({cpu:.2f})" for seconds, cpu in steps]
        rows.append([str(ranks), "yes" if mixed else "no", *taken, f"{of_rank:.0f}", f"{of_worker:.0f}"])
    heads = ["ranks", "mixture", *(f"{step}, s (CPU s)" for step in STEPS), "MB per rank", "MB per worker"]
    shared = f"Eight ranks and their workers shared {len(os.sched_getaffinity(0))} cores: there CPU seconds count."
    return f"{table(heads, rows)}\n\nTargets: a loader's start < 2 s; a rank and its worker < 500 MB. {shared}"


def combine() -> str:
    """Measure the cost of combining eight tasks' gradients in an update of nano, by rule."""
    from combine_cost import PLAIN, costs

    measured, rows = costs(), []
    for rule, seconds in measured.seconds.items():
        to_plain, to_mean = (median_ratio(seconds, measured.seconds[other]) for other in (PLAIN, "mean"))
        shares = [spent / update for spent, update in zip(measured.combining[rule], seconds, strict=True)]
        dealing = 0.0 if rule == PLAIN else measured.dealing / statistics.median(seconds)
        share = f"{statistics.median(shares) + dealing:.2%}"
        memory = f"{measured.memory[rule]:.1f}"
        rows.append([rule, f"{to_plain:.3f}×", f"{to_mean:.3f}×", share, "" if rule == PLAIN else "< 5%", memory])
        print(*rows[-1], sep=" | ", flush=True)
    heads = ["combine", "an update ÷ without", "÷ mean", "dealing and combining, of an update", "target"]
    ratio = f"{measured.delivered / measured.consumed:.0f}×"
    loader = [[f"{measured.delivered:,.0f}", f"{measured.consumed:,.0f}", ratio, "≥ 20×"]]
    return "\n\n".join(
        [
            table([*heads, "peak memory above without, in gradients"], rows),
            f"Of these shares, dealing is {1000 * measured.dealing:.2f} ms per update.",
            table(["the loader delivers, tokens per second", "consumed without a rule", "ratio", "target"], loader),
        ]
    )


def update_end() -> str:
    """Measure the host's work for the records of an update of base, by the number of simulated ranks."""
    from update_end import milliseconds

    rows = [
        [f"{ranks}", *(f"{milliseconds(ranks, rank):.2f}" for rank in (0, 1)), "≤ 3" if ranks == 256 else ""]
        for ranks in (8, 64, 256)
    ]
    return table(["ranks", "rank 0, ms per update", "another rank, ms", "target"], rows)


def gpu_code() -> str:
    """Count the bytes that kernels move on an H100, from inductor's code and eager operations; nothing is run."""
    from gpu_code import CHUNK, TOKENS, counts
    from predicted import shape_of

    rows = []
    for model, tokens in TOKENS.items():
        found, unit = counts(model), 2 * tokens * shape_of(model).hidden_size
        ways = {"compiled": "", "eager": ", eager"}
        both = dict.fromkeys(ways, 0.0)
        for direction in ("forward", "backward"):
            cells = []
            for way, suffix in ways.items():
                each = found[f"layer, {direction}{suffix}"]
                both[way] += each["bytes"] / unit
                cells += [f"{each['kernels']}", f"{each['bytes'] / unit:.1f} u"]
            rows.append([f"a layer of {model}, {direction}", *cells, ""])
        rows.append([f"a layer of {model}, both", "", f"{both['compiled']:.1f} u", "", f"{both['eager']:.1f} u", ""])
    rows[2][-1] = "≤ 80 u"
    cells = []
    for suffix in ("", ", eager"):
        chunk = found[f"chunk of the loss{suffix}"]
        cells += [f"{chunk['kernels']}", f"{chunk['bytes'] / 1e9:.2f} GB"]
    rows.append([f"{CHUNK:,} tokens of the loss, 50,368 words", *cells, "≤ 0.6 GB"])
    counted = table(["", "kernels, compiled", "moved", "kernels, eager", "moved", "target, compiled"], rows)
    return f"Without products and attention. u: the tokens' hidden states once in bf16.\n\n{counted}"


def predicted() -> str:
    """Predict the speed on H100 GPUs from the counts."""
    from predicted import ATTENTION, predict

    older, newer = ATTENTION
    rows = []
    for model, stages in {"base": ((96, 1024), (12, 8192)), "large": ((56, 1024), (7, 8192))}.items():
        for size, row_length in stages:
            for way, attention in (("eager", older), ("compiled", older), ("compiled", newer)):
                found = predict(model, size, row_length, way, attention)
                parts = (found.products, found.attention, found.elementwise, found.loss, found.seconds)
                rows.append(
                    [
                        f"{model}, {size} × {row_length:,}",
                        f"{way}, {attention}",
                        *(f"{1000 * seconds:.0f}" for seconds in parts),
                        f"{found.tokens_per_second / 1000:.0f}k",
                        f"{found.mfu:.1%}",
                    ]
                )
    heads = ["microbatch", "", "products, ms", "attention", "elementwise", "loss", "in all", "tokens/s per GPU", "MFU"]
    aim = "Aim: base's 96 × 1,024, compiled, in at most 265 ms. ModernBERT's authors: 307k tokens/s per GPU, 25.6 %."
    return f"Predicted, and not run.\n\n{table(heads, rows)}\n\n{aim}"


def exchanges() -> str:
    """Count what a rank exchanges in an update of base and large, by the number of simulated GPUs."""
    from exchanges import counts

    rows = []
    for name in ("base", "large"):
        for ranks in (8, 64, 256):
            for way in ("before", "as shipped"):
                found = counts(name, ranks, before=way == "before")
                sizes = [f"{found[key] / 1e9:.2f}" for key in ("bytes", "network")]
                rows.append([name, f"{ranks}", f"{found['microbatches']}", way, f"{found['collectives']}", *sizes])
                print(*rows[-1], sep=" | ", flush=True)
    heads = ["", "GPUs", "microbatches", "", "collectives per update", "GB a rank receives", "of them between nodes"]
    before = "Before: one shard group of all GPUs, exchanges in every microbatch, all parameters in float32."
    return f"{before}\n\n{table(heads, rows)}"


def checkpoint_planning() -> str:
    """Measure the ranks' work before and after writing a checkpoint of base, by the number of simulated GPUs."""
    from checkpoint_planning import ONE_SHARD_GROUP, planning

    rows = []
    for ranks in (8, 64, 256):
        for way, overrides in {"as shipped": [], "one shard group": ONE_SHARD_GROUP}.items():
            if ranks == 8 and overrides:
                continue  # one node is one shard group
            found = planning(ranks, overrides)
            of_all = [f"{found[key]:,}" for key in ("saving", "items", "written")]
            seconds = [f"{found[key]:.2f}" for key in ("listing", "planned", "finished")]
            rows.append([f"{ranks}", way, *of_all, f"{found['bytes'] / 1e6:.1f}", *seconds])
            print(*rows[-1], sep=" | ", flush=True)
    heads = ["GPUs", "", "ranks that save", "items listed", "items written", "MB to rank 0"]
    return table([*heads, "a rank's list, CPU s", "rank 0's plan, CPU s", "its metadata, CPU s"], rows)


PARTS = {
    "Text to shards": shards,
    "Speed": speed,
    "Speed of RoFormerV2": roformer,
    "Speed of Llama": llama,
    "Peak memory of a step, above the weights": memory,
    "Share of the floor": floor,
    "Cost against length": length,
    "Cost of the recipe": recipe,
    "Cost of the monitors": monitors,
    "The training stream": stream,
    "The start of a loader": start,
    "Combining the gradients of tasks": combine,
    "The end of an update": update_end,
    "Code for a GPU": gpu_code,
    "Predicted on an H100": predicted,
    "Exchanges between GPUs": exchanges,
    "Planning of a checkpoint": checkpoint_planning,
}


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def processor() -> str:
    """Return the processor's name from the operating system, its family, whether it has AMX, and the threads used."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    amx = "with AMX" if "amx_bf16" in facts.get("flags", "") else "without AMX"
    family = f"family {facts.get('cpu family')}, model {facts.get('model')}"
    return f"{facts.get('model name', platform.processor())} ({family}, {amx}), {torch.get_num_threads()} threads"


def main(wanted: list[str]) -> None:
    keep_freed_memory()
    sections = written()
    for title, part in PARTS.items():
        if not wanted or part.__name__ in wanted:
            sections[title] = (
                f"{processor()}, torch {torch.__version__}, transformers {transformers.__version__}\n\n{part()}"
            )
            head = "Written by `python benchmarks`, each part on the machine it names; README.md explains the parts."
            parts = [f"## {title}\n\n{sections[title]}" for title in PARTS if title in sections]
            RESULTS.write_text("\n\n".join(["# Benchmarks", head, *parts]) + "\n", encoding="utf-8")
    print(f"written to {RESULTS}")


def written() -> dict[str, str]:
    """Return the current sections of results.md, by title."""
    if not RESULTS.exists():
        return {}
    _, *sections = RESULTS.read_text(encoding="utf-8").split("\n## ")
    return {title: text.strip() for title, text in (section.split("\n", 1) for section in sections)}


if __name__ == "__main__":
    main(sys.argv[1:])
