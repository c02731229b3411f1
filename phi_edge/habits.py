"""What people type who come from Ollama, llama.cpp, optimum or other verbs, and what it is called here.

Spelling mistakes need no row: errors.did_you_mean finds those.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

# A word in the place of a verb -> what to type.
VERBS: dict[str, str] = {
    **dict.fromkeys(
        ("pull", "download", "get", "fetch", "convert", "create", "compile", "build", "import"),
        "`phi-edge export HUB_ID FOLDER` downloads a checkpoint and makes an artifact",
    ),
    **dict.fromkeys(("quantize", "quantise", "quant"), "`phi-edge export CHECKPOINT FOLDER --scheme NAME` quantises"),
    **dict.fromkeys(
        ("chat", "generate", "ask", "prompt", "cli", "infer", "complete"),
        '`phi-edge run FOLDER` starts a conversation, `phi-edge run FOLDER "a question"` answers one',
    ),
    **dict.fromkeys(("ls", "list", "ps", "models"), "artifacts are plain folders, and nothing keeps a list: use `ls`"),
    **dict.fromkeys(("rm", "remove", "delete", "stop"), "an artifact is a plain folder: remove it with `rm -r`"),
    **dict.fromkeys(("cp", "push", "deploy"), "`phi-edge run FOLDER --device NAME` brings an artifact to a device"),
    **dict.fromkeys(("show", "info", "inspect", "verify", "validate"), "`phi-edge check FOLDER` shows and verifies"),
    **dict.fromkeys(("benchmark", "measure", "perf"), "`phi-edge bench FOLDER --out FILE` measures"),
    **dict.fromkeys(("eval", "evaluate", "perplexity", "quality"), "`phi-edge score FOLDER` measures quality"),
    **dict.fromkeys(("package", "app", "init"), "`phi-edge bundle FOLDER OUT --for KIND` writes what an app ships"),
    **dict.fromkeys(("env", "status"), "`phi-edge doctor` examines this machine, and a device by its name"),
    "devices": "`phi-edge lab list` shows them",
    "compare": "`phi-edge report A.json B.json` compares measurements, `phi-edge diff A B` artifacts",
    "help": "`phi-edge --help`, or `phi-edge VERB --help`",
    "version": "`phi-edge --version`",
    "-v": "`phi-edge --version`",
}

_MODEL_FIRST = "the model comes without an option: phi-edge {verb} {model}"
_NO_DEVICE_INDEX = "leave it out: the artifact's target decides what it runs on"
_LENGTH = "the context is fixed by `phi-edge export --context TOKENS`"
_RUN: dict[str, str] = {
    **dict.fromkeys(("-p", "--prompt"), 'give the prompt without an option: phi-edge run FOLDER "a question"'),
    **dict.fromkeys(("-n", "--n-predict", "--predict", "--num-predict", "--max-tokens"), "use --max-new-tokens"),
    **dict.fromkeys(("-c", "--ctx-size", "--num-ctx", "--context", "--max-length"), _LENGTH),
    **dict.fromkeys(("-t", "--n-threads", "--num-threads"), "use --threads"),
    "--temp": "use --temperature",
    "-s": "use --seed",
    **dict.fromkeys(("-sys", "--system-prompt"), "use --system"),
    **dict.fromkeys(("-r", "--reverse-prompt"), "use --stop"),
    **dict.fromkeys(("-i", "-cnv", "--interactive", "--conversation"), "leave the prompt out to converse"),
    **dict.fromkeys(("-f", "--file"), "give - as the prompt: it reads stdin"),
    **dict.fromkeys(("-ngl", "--n-gpu-layers", "--gpu", "--cuda"), _NO_DEVICE_INDEX),
    **dict.fromkeys(("-v", "--verbose"), "leave it out: times and memory go to stderr always"),
    **dict.fromkeys(
        ("--format", "--stream"), "leave it out: text comes as it is made; --json prints an object a token"
    ),
}
_EXPORT: dict[str, str] = {
    **dict.fromkeys(("-o", "--output", "--out", "--outfile", "--output-dir"), "give the new folder as the second word"),
    **dict.fromkeys(
        ("-q", "--quant", "--quantize", "--outtype", "--bits", "--precision", "-p", "--dtype"), "use --scheme"
    ),
    **dict.fromkeys(("-c", "--max-length", "--seq-length", "--max-seq-len", "--ctx-size"), "use --context"),
    **dict.fromkeys(("-d", "--device", "-e", "--execution-provider"), "use --target"),
    "--revision": "write it after the id: owner/name@REVISION",
    "--task": "leave it out: there is only text generation",
    "--opset": "leave it out: the target decides it",
    "-f": "use --format",
}
_BENCH: dict[str, str] = {
    **dict.fromkeys(("-p", "--n-prompt", "--prompt"), "use --prompt-tokens"),
    **dict.fromkeys(("-n", "--n-gen", "--max-new-tokens"), "use --generate-tokens"),
    **dict.fromkeys(("-r", "--repetitions", "--runs", "--iterations"), "use --reps"),
    **dict.fromkeys(("-o", "--output", "--json"), "use --out"),
    **dict.fromkeys(("-t", "--n-threads"), "use --threads"),
    **dict.fromkeys(("-d", "--target"), "use --device"),
    **dict.fromkeys(("-ngl", "--n-gpu-layers"), _NO_DEVICE_INDEX),
}
# verb -> an option of another program -> what to do
OPTIONS: dict[str, dict[str, str]] = {
    "export": _EXPORT,
    "check": {"--checkpoint": "use --against", "--reference": "use --against", "-o": "use --json"},
    "diff": {
        **dict.fromkeys(("-p", "--prompt"), 'use --run "a question"'),
        **dict.fromkeys(("-o", "--out", "--output"), "use --json"),
        **dict.fromkeys(("-n", "--max-tokens"), "use --max-new-tokens"),
        **dict.fromkeys(("--exit-code", "-q", "--brief"), "use --fail"),
    },
    "run": _RUN,
    "score": {
        **dict.fromkeys(("-f", "--file", "--data", "--dataset"), "use --text"),
        **dict.fromkeys(("--baseline", "--reference", "--checkpoint"), "use --against"),
        **dict.fromkeys(("-o", "--out", "--output"), "use --json"),
        "-t": "use --threads",
    },
    "bench": _BENCH,
    "report": {
        **dict.fromkeys(("-o", "--out", "--output"), "use --html FILE, or --json FILE"),
        "--md": "use --markdown",
        "--csv": "use --json",
    },
    "gate": {
        **dict.fromkeys(("-b", "--budget", "--limits"), "use --budgets"),
        **dict.fromkeys(("--xml", "-o", "--out"), "use --junit"),
    },
    "lab list": {
        **dict.fromkeys(("-d", "--device"), "leave it out: it shows all; `phi-edge doctor NAME` examines one"),
        **dict.fromkeys(("-a", "--all"), "leave it out: it shows all"),
        "--lab": "give the lab file without an option: phi-edge lab list FILE",
    },
    "lab run": {
        **dict.fromkeys(("-d", "--device"), "PLAN names the devices"),
        **dict.fromkeys(("-o", "--out", "--output"), "use --out-dir"),
        **dict.fromkeys(("-p", "--plan"), "give the plan without an option: phi-edge lab run PLAN --out-dir FOLDER"),
        "--resume": "leave it out: the same command goes on where it was",
    },
    "history": {
        **dict.fromkeys(("-o", "--out", "--output", "--json"), "use --html FILE, --csv FILE, or --parquet FILE"),
        "--dashboard": "use --html FILE",
        "--prom": "use --prometheus FILE",
        **dict.fromkeys(("-q", "--query", "-m", "--metric", "--filter", "--where"), "use --sql QUERY"),
    },
    "bundle": {
        **dict.fromkeys(("-o", "--output", "--out"), "give the new folder as the second word"),
        **dict.fromkeys(("-t", "--target", "--platform", "--kind"), "use --for"),
    },
    "doctor": {
        **dict.fromkeys(("-d", "--device"), "give the device's name without an option: phi-edge doctor NAME"),
        "--all": "give a device's name: it examines one at a time; `phi-edge lab list` shows all",
        "--fix": "leave it out: each finding comes with the command that fixes it",
    },
    "demo": {**dict.fromkeys(("-o", "--output", "--folder"), "use --out"), "--target": "leave it out: it shows all"},
}
_DIRECTML = "Windows' graphics processors are windows-directml (DirectML) or webgpu, its processors cpu"
_APPLE = "llama.cpp runs an artifact of --format gguf there, and ExecuTorch's Swift package reads one of executorch"
# An option -> a word that it does not know -> what to do.
CHOICES: dict[str, dict[str, str]] = {
    "--for": {
        **dict.fromkeys(("ios", "iphone", "ipad", "macos", "mac", "apple", "swift"), f"nothing to bundle: {_APPLE}"),
        **dict.fromkeys(("browser", "javascript", "js", "webgpu", "wasm"), "use web"),
        **dict.fromkeys(("pi", "pi5", "linux", "systemd"), "use raspberry-pi"),
        **dict.fromkeys(("huggingface", "hf"), "use hub"),
        **dict.fromkeys(("llama.cpp", "lmstudio", "gguf"), "nothing to bundle: it reads a GGUF artifact's model.gguf"),
        **dict.fromkeys(("docker", "server", "openai"), "`phi-edge serve FOLDER` serves over HTTP"),
    },
    "--target": {
        **dict.fromkeys(("ios", "iphone", "ipad"), f"use android: {_APPLE}"),
        **dict.fromkeys(("macos", "mac", "apple", "linux", "desktop", "server", "x86", "local"), "use cpu"),
        **dict.fromkeys(("pi", "pi4", "pi5", "rpi", "arm", "arm64"), "use raspberry-pi"),
        **dict.fromkeys(("phone", "mobile"), "use android"),
        **dict.fromkeys(("windows", "win", "directml", "dml"), _DIRECTML),
        **dict.fromkeys(("gpu", "nvidia"), "use cuda for NVIDIA's cards, webgpu or windows-directml for others"),
        **dict.fromkeys(("browser", "javascript", "js", "wasm"), "use web"),
    },
    "--scheme": {
        **dict.fromkeys(
            ("int4", "4bit", "4", "q4", "w4"),
            "leave it out for 4 bits with a calibration, or use int4-b32 for plain ones",
        ),
        **dict.fromkeys(("q4_0", "q4_1", "q4_k_m"), "use --format gguf, whose default has ggml's blocks of 4 bits"),
        **dict.fromkeys(("int8", "8bit", "q8_0"), "layers have 4 bits; --bits-per-weight 8.5 gives most of them 8"),
        **dict.fromkeys(("none", "float", "float32", "f32"), "use fp32"),
        **dict.fromkeys(("awq", "gptq"), "use a scheme with -weighted or -gptq in its name"),
    },
    "--format": {
        **dict.fromkeys(("pte", "et"), "use executorch"),
        **dict.fromkeys(("llama.cpp", "ollama"), "use gguf"),
        **dict.fromkeys(("ort", "genai"), "use onnx"),
    },
}
_MODEL = ("-m", "--model", "--model-id", "--model-path", "--model_name_or_path", "--input", "-hf", "--hf-repo")


def verb_habit(word: str, verbs: Iterable[str]) -> str | None:
    """What a word in the verb's place means here: another program's verb, or a model whose verb was forgotten."""
    if word in VERBS:
        return VERBS[word]
    folder = Path(word)
    if (folder / "manifest.json").is_file():
        return f"a verb comes first: phi-edge run {shlex.quote(word)}"
    if word == "tiny" or (folder / "config.json").is_file() or (word.count("/") == 1 and not folder.exists()):
        return f"a verb comes first: phi-edge export {shlex.quote(word)} FOLDER"
    if any(word in (f"phi-{verb}", f"--{verb}", f"-{verb}") for verb in verbs):
        return f"write the verb plainly: phi-edge {word.partition('-')[2].lstrip('-')}"
    return None


def option_habit(verb: str, option: str, words: Sequence[str]) -> str | None:
    """What another program's option means here. `words` are those after the verb: `-cnv` is one of them, and the parser
    reports `-c`."""
    known = OPTIONS.get(verb, {})
    written = [word.partition("=")[0] for word in words if word.startswith(option)]
    for name in (*written, option):
        if name in known:
            return known[name]
        if name in _MODEL:
            model = _value(words, name)
            if verb in ("report", "gate", "lab list", "lab run", "history", "doctor", "demo"):
                return None
            return _MODEL_FIRST.format(verb=verb, model=shlex.quote(model) if model else "MODEL")
    return None


def _value(words: Sequence[str], option: str) -> str | None:
    """The word after an option, or after its equals sign."""
    for place, word in enumerate(words):
        if word == option and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None
