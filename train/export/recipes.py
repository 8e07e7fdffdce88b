"""Sections of a model card that say how to use the folder."""

import json
import shlex
from pathlib import Path

from ivon_jax.models.peft_io import CONFIG
from ivon_jax.train.config import DataConfig
from ivon_jax.train.data.task import Task

_LOAD = """\
## Use with PEFT

```python
import torch
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

base, folder = {base}, {folder}
tokenizer = AutoTokenizer.from_pretrained(base)
model = {auto}.from_pretrained(base, dtype=torch.float32{outputs})
model = PeftModel.from_pretrained(model, folder).eval()  # the posterior mean
```
"""
_AVERAGE = """\
## Average the posterior samples

Average probabilities and not weights: their spread is the model's uncertainty.

```python
names = [f"sample-{{i}}" for i in range({samples})]
for name in names:
    model.load_adapter(folder, name, subfolder=name)
inputs = tokenizer({text}, return_tensors="pt")
{words}draws = []
for name in names:
    model.set_adapter(name)
    with torch.no_grad():
        logits = model(**inputs).logits[0{at}]
    draws.append(logits.softmax(-1))
draws = torch.stack(draws)
probs = draws.mean(0)  # of {labels}
entropy = -(probs * probs.log()).sum()
mutual_information = entropy + (draws * draws.log()).sum(-1).mean()
```
"""
_WORDS = """\
words = [tokenizer.encode(w, add_special_tokens=False)[0] for w in {words}]
"""
_TEXTS = """\
## Texts of the posterior samples

Each `sample-N` is an adapter of its own: write with several, and choose by a vote or by
minimum Bayes risk (`ivon_jax.mbr`); vLLM serves all of them at once (`--lora-modules`).
"""
_OURS = """\
## Use with ivon-jax

```sh
ivon-jax evaluate --adapter FOLDER {options} --out evaluated
```

`posterior.safetensors` is the whole posterior, from which any number of samples can be
drawn:

```python
from ivon_jax import load_posterior

posterior, metadata = load_posterior("posterior.safetensors")
```
"""
_WHOLE = """\
## Use with transformers

```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained({folder})
tokenizer = AutoTokenizer.from_pretrained({folder})
```
"""


def recipes(
    folder: Path, base: str, task: Task, data: DataConfig, samples: int
) -> list[str]:
    """Returns the sections of an exported folder.

    Args:
        folder: the folder, with its configuration.
        base: name of the base model.
        task: the task.
        data: its options.
        samples: number of samples in the folder.
    """
    adapter = (folder / CONFIG).exists()
    encoder = _is_encoder(folder)
    head = "SequenceClassification" if encoder else "CausalLM"
    names = {"auto": f"AutoModelFor{head}", "folder": '"FOLDER"'}
    if not adapter:
        return [_WHOLE.format(**names)]
    outputs = f", num_labels={task.outputs}" if encoder else ""
    sections = [_LOAD.format(base=json.dumps(base), outputs=outputs, **names)]
    if samples and task.label_words and not task.choices:
        sections.append(_average(task, samples, encoder=encoder))
    elif samples and task.exchange:
        sections.append(_TEXTS)
    words = ["--model", base, "--task", data.task]
    if data.task in ("custom", "text"):
        words += ["--eval-file", "FILE"]
    words += _options(task, data)
    return [*sections, _OURS.format(options=shlex.join(words))]


def _options(task: Task, data: DataConfig) -> list[str]:
    """Returns the options that change what a model reads of a row."""
    names = ["prompt", "labels", "label_field", "prompt_style", "columns"]
    names += ["learn", "max_length", "too_long"]
    if task.label_words:
        names.append("leading_space")
    words = []
    for name in names:
        value = getattr(data, name)
        if value != getattr(DataConfig(), name):
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def _is_encoder(folder: Path) -> bool:
    """Returns whether the model has a head, by the folder's configuration."""
    for name in (CONFIG, "config.json"):
        if (folder / name).exists():
            values = json.loads((folder / name).read_text())
            kinds = [values.get("task_type"), *(values.get("architectures") or [])]
            return any(str(k).endswith(("SEQ_CLS", "Classification")) for k in kinds)
    return False


def _average(task: Task, samples: int, *, encoder: bool) -> str:
    blank = " " if task.leading_space else ""
    words = [blank + word for word in task.label_words]
    text = ", ".join(json.dumps(f"<{name}>") for name in task.inputs)
    return _AVERAGE.format(
        samples=samples,
        text=text if encoder and text else '"<the prompt>"',
        words="" if encoder else _WORDS.format(words=json.dumps(words)),
        at="" if encoder else ", -1, words",
        labels=", ".join(task.label_words),
    )
