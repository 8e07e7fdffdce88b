"""The runs behind the paper's tables and figures, at the scale of the paper and here.

Settings that are not named are the defaults, which are the paper's. Tables share runs:
those of a group are in one folder.
"""

from collections.abc import Mapping

from ivon_jax.train.reproduce.recipe import Group

# Scale "paper": the models and data of App. D.
LLAMA = "--model meta-llama/Llama-3.2-3B --base int8"
QWEN = "--model Qwen/Qwen2.5-3B --base bf16"
DEBERTA = "--model microsoft/deberta-v3-base"
# In Tab. 1's order, half of the training examples (of those with four choices).
HALVES = {
    "winogrande_s": 320,
    "arc_challenge": 558,
    "arc_easy": 1120,
    "winogrande_m": 1279,
    "openbookqa": 2478,
    "boolq": 4713,
}
COMMONSENSE = {task: f"--task {task}" for task in HALVES}
TWO = "--methods adam ivon-lora"
SWEEP = "--taus 0.25 0.5 2 4 8 16 --prunes 0.1 0.2 0.3 0.5 0.7 0.9 --sweep-samples 10"
END = "--seed {seed} --out {out} --resume"

# Scale "small": SmolLM2-135M, 256 training examples. 2,000 steps of batch 8 are as many
# epochs as the paper's 5,000 on WinoGrande-S. The rates and gamma are one rule for all
# tasks, chosen on held-out examples of city-continent (docs/results.md); beta2 is the
# paper's for the length: (1 - beta2) * steps is 2.5.
SCORED = "--train-examples 256 --eval-examples 400"
TEXTS = f"--prompt-style choice_text {SCORED}"
SMALL = {
    "city-continent": f"--task city-continent {SCORED}",
    "sst2": f"--task sst2 {SCORED}",
    "arc_easy": f"--task arc_easy {TEXTS}",
    "openbookqa": f"--task openbookqa {TEXTS}",
    "winogrande_s": f"--task winogrande_s {TEXTS}",
}
RATES = {
    "adam": "--learning-rate 1e-4",
    "ivon-lora": "--learning-rate 0.03 --gamma 40",
    "blob": "--learning-rate 1e-4",
}
# Equal numbers of trials: of rate and length, and for IVON-LoRA of gamma.
SEARCH = {
    "adam": "--search learning_rate=3e-5..1e-3:log steps=64,128,256,512,1024",
    "ivon-lora": "--beta2 0.993 --search learning_rate=5e-3..1e-1:log"
    " gamma=10..1000:log steps=64,128,256,512,1024",
}
TRIALS = 12


def settings(steps: int, method: str) -> str:
    """Returns a method's options at a length: steps, batch size, rates, and beta2."""
    beta2 = f" --beta2 {1 - 2.5 / steps:.6g}" if method == "ivon-lora" else ""
    return f"--steps {steps} --batch-size 8{beta2} {RATES[method]}"


def lengths(steps: int, *methods: str) -> str:
    """Returns the same of several methods, for a comparison."""
    named = (settings(steps, x).replace("--", f"--{x}.") for x in methods)
    return " ".join(named)


def compare(options: str, cases: Mapping[str, str], name: str) -> Group:
    """Returns comparisons, one a case and seed."""
    return Group(name, cases, (f"compare {options} {{case}} {END}",))


def strict(cases: Mapping[str, str]) -> Group:
    """Returns searches on held-out examples, and the run of each method's best point.

    Each seed has its own examples, searches, and a run on all of its examples.
    """
    commands = []
    for method, search in SEARCH.items():
        commands += [
            f"tune --method {method} --batch-size 8 {{case}} --validation-examples 96"
            f" --trials {TRIALS} {search} --seed {{seed}} --out {{out}}/tune",
            f"train --config {{out}}/tune/best-{method}.json --validation-examples None"
            f" --eval-examples 400 --out {{out}}/{method} --resume",
            f"evaluate {{out}}/{method} --samples 10",
        ]
    # The searches score the held-out examples, all of them.
    searched = {k: x.replace(" --eval-examples 400", "") for k, x in cases.items()}
    return Group("strict", searched, tuple(commands))


def numbers(name: str, case: str, options: Mapping[str, str]) -> Group:
    """Returns runs of a task that asks for a number, which `compare` does not take."""
    commands = []
    for method, words in options.items():
        commands += [
            f"train --method {method} {words} {{case}} --seed {{seed}}"
            f" --out {{out}}/{method} --resume",
            f"evaluate {{out}}/{method}",
        ]
    return Group(name, {case: f"--task {case}"}, tuple(commands))


def votes(options: str, cases: Mapping[str, str], models: int) -> Group:
    """Returns comparisons of votes, 8 outputs a model, then the same with pruning."""
    voting = f"--samples {models} --outputs 8"
    commands = (
        f"compare {options} {{case}} {voting} {END}",
        f"evaluate {{out}}/ivon-lora --prune 0.1 {voting}",
    )
    return Group("votes", cases, commands)


PAPER = compare(
    f"{LLAMA} --methods adam ivon-lora blob --fit laplace-kfac:adam laplace-diag:adam"
    f" {SWEEP}",
    COMMONSENSE,
    "commonsense",
)
PAPER_LONGER = compare(
    f"{LLAMA} {TWO} --adam.steps 10000 --adam.warmup 150"
    " --ivon-lora.steps 10000 --ivon-lora.warmup 150 --eval-steps 500",
    COMMONSENSE,
    "longer",
)
PAPER_HALF = compare(
    f"{LLAMA} {TWO}",
    {task: f"--task {task} --train-examples {n}" for task, n in HALVES.items()},
    "half",
)
PAPER_SIZES = compare(
    f"{LLAMA} {TWO}",
    {
        str(n): f"--task winogrande_m --train-examples {n}"
        for n in (256, 512, 1024, 2048)
    },
    "sizes",
)
PAPER_VOTES = votes(f"{QWEN} {TWO}", {"gsm8k": "--task gsm8k"}, models=64)
GLUE = ("cola", "mrpc", "rte", "stsb", "qqp", "qnli", "sst2")
CLASSES = {task: f"--task {task}" for task in GLUE if task != "stsb"}
PAPER_GLUE = compare(f"{DEBERTA} {TWO} --adam.learning-rate 5e-4", CLASSES, "glue")
PAPER_FULL = compare(
    f"{DEBERTA} --train full --methods adam --adam.learning-rate 1e-4",
    CLASSES,
    "glue-full",
)
PAPER_STSB = numbers(
    "glue",
    "stsb",
    {"adam": f"{DEBERTA} --learning-rate 5e-4", "ivon-lora": DEBERTA},
)
PAPER_STSB_FULL = numbers(
    "glue-full", "stsb", {"adam": f"{DEBERTA} --train full --learning-rate 1e-4"}
)

SMALL_LONG = compare(
    f"--methods adam ivon-lora blob --fit laplace-kfac:adam laplace-diag:adam {SWEEP}"
    f" {lengths(2000, 'adam', 'ivon-lora', 'blob')}",
    SMALL,
    "commonsense",
)
SMALL_LONGER = compare(f"{TWO} {lengths(4000, 'adam', 'ivon-lora')}", SMALL, "longer")
SMALL_HALF = compare(
    f"{TWO} {lengths(2000, 'adam', 'ivon-lora')}",
    {task: x.replace("256", "128") for task, x in SMALL.items()},
    "half",
)
SMALL_SIZES = compare(
    f"{TWO} {lengths(2000, 'adam', 'ivon-lora')}",
    {
        str(n): f"--task city-continent --train-examples {n} --eval-examples 400"
        for n in (128, 256, 512, 1024, 2048)
    },
    "sizes",
)
# As many epochs again, of half of the examples: half an hour of one core a seed.
SMALL_CURVES = compare(
    f"{TWO} {lengths(1000, 'adam', 'ivon-lora')} --taus 0.5 2 --sweep-samples 10"
    " --eval-steps 125",
    {
        "city-continent": "--task city-continent --train-examples 128"
        " --eval-examples 400"
    },
    "curves",
)
SMALL_VOTES = votes(
    f"{TWO} --adam.steps 120 --adam.batch-size 8 --adam.learning-rate 1e-3"
    " --ivon-lora.steps 120 --ivon-lora.batch-size 8 --ivon-lora.learning-rate 0.1",
    {"sums": "--task sums --eval-examples 64"},
    models=16,
)
# No encoder is at hand here: the tasks of which a decoder has prompts.
SMALL_CLASSES = {
    task: f"--task {task} {SCORED}" for task in ("cola", "mrpc", "rte", "sst2")
}
SMALL_GLUE = compare(
    f"{TWO} {lengths(2000, 'adam', 'ivon-lora')}", SMALL_CLASSES, "glue"
)
SMALL_FULL = compare(
    "--train full --methods adam --adam.steps 2000 --adam.batch-size 8"
    " --adam.learning-rate 1e-5",
    SMALL_CLASSES,
    "glue-full",
)
SMALL_STRICT = strict(SMALL)
