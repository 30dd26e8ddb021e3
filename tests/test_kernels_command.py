"""`omniserve kernels warm-up`: what is compiled, what is printed, and the exit status."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from kernel_processes import TESTS, environment

from omniserve.cli import main

CONFIG = """
models:
  - {{name: one, path: "{path}", dtype: float32}}
  - {{name: two, path: "{path}", dtype: float32}}
tiers:
  - {{name: batch, class: best_effort}}
"""
# Generates with a model, prefill and decode, and prints how many kernels it had to compile.
ENGINE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from engine_builders import make_engine, make_model_settings, make_request, run_all

run_all(make_engine(make_model_settings(Path(sys.argv[2]))), [make_request("a", range(20))])

from cpu_attn.kernel_cache import num_compiled
print(num_compiled())
"""


def run(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(TESTS.parent, {"NUMBA_CACHE_DIR": cache}),
        capture_output=True,
        text=True,
    )


def warm_up(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return run("-m", "omniserve", "kernels", "warm-up", *arguments, cache=cache)


@dataclass(frozen=True)
class Warmed:
    """A cache that was empty, and what was said as it was filled."""

    config: Path
    cache: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def warmed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Warmed:
    directory = tmp_path_factory.mktemp("warmed")
    config, cache = directory / "serve.yaml", directory / "cache"
    config.write_text(CONFIG.format(path=tiny_checkpoint))
    done = warm_up(str(config), "--variant", "int8:float32:16", cache=cache)
    return Warmed(config, cache, done)


def test_an_engine_compiles_nothing_after_it(warmed: Warmed, tiny_checkpoint: Path) -> None:
    config, cache, done = warmed.config, warmed.cache, warmed.done
    assert (done.returncode, done.stderr) == (0, "")
    title, *lines = done.stdout.splitlines()
    assert f" in {cache}/kernels-" in title
    rows = [line.strip().split("  ", 1) for line in lines]
    assert [number for number, _ in rows] == [f"{n}/{len(rows)}" for n in range(1, len(rows) + 1)]
    for (_, row), name in zip(
        rows,
        (
            "attention, int8 cache, float32 queries, head_dim 16",
            "attention, float32 cache, float32 queries, head_dim 32",
            "merge of partial results",
        ),
        strict=False,
    ):
        assert row.startswith(name)
    assert all(" compiled " in row and row.endswith(" s") for _, row in rows)

    engine = run("-c", ENGINE, str(TESTS), str(tiny_checkpoint), cache=cache)
    assert engine.stdout == "0\n", engine.stderr

    again = warm_up(str(config), cache=cache)
    assert again.returncode == 0
    assert "compiled" not in again.stdout
    assert again.stdout.count("from the cache") == len(rows) - 1


def test_a_place_where_nothing_can_be_kept() -> None:
    done = run("-m", "cpu_attn.warm_up_command", cache=Path("/dev/null/cache"))
    assert done.returncode == 1
    assert "/dev/null/cache/kernels-" in done.stderr
    assert done.stderr.splitlines()[-1] == "omniserve: 1 of 1 kernels could not be saved"


def test_a_model_that_has_no_attention_kernel(warmed: Warmed) -> None:
    done = run("-m", "cpu_attn.warm_up_command", "--model", "float32:24", cache=warmed.cache)
    assert done.returncode == 0
    assert done.stderr == (
        "omniserve: head_dim 24: a multiple of 16 in 16..256 is needed; other attention is used\n"
    )
    assert "RMSNorm" in done.stdout
    assert "attention" not in done.stdout


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ("bfloat16:64", "or CACHE:QUERIES:HEAD_DIM:bfloat16 for products in bfloat16"),
        ("float64:float32:64", "CACHE 'float64' is none of float32, float16, bfloat16, int8"),
        ("float32:int8:64", "QUERIES 'int8' is none of float32, float16, bfloat16"),
        ("float32:float32:x", "head_dim 'x' is not a whole number"),
        ("float32:float32:24", "head_dim 24: a multiple of 16 in 16..256 is needed"),
        ("float32:float32:64:exact", "products 'exact': bfloat16 or nothing is needed"),
        ("float32:float32:64:bfloat16", "BFLOAT16 is needed for both"),
    ],
)
def test_variants_that_are_none(
    variant: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", "warm-up", "--variant", variant]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"omniserve: '{variant}': ")
    assert line.count(variant) == 1
    assert line.endswith(reason)


def test_nothing_to_compile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "warm-up"]) == 2
    assert "FILE or a --variant is needed" in capsys.readouterr().err


def test_a_vector_path_that_is_none(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMNISERVE_CPU_ISA", "avx1024")
    assert main(["kernels", "warm-up", "--variant", "float32:float32:16"]) == 2
    out, err = capfd.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("omniserve: OMNISERVE_CPU_ISA=avx1024: this CPU can take ")
    assert out == ""


@pytest.mark.parametrize("option", [(), ("--config",)])
def test_a_checkpoint_that_is_not_there(
    option: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(CONFIG.format(path=tmp_path / "absent"))
    assert main(["kernels", "warm-up", *option, str(config)]) == 2
    assert "absent: no such directory" in capsys.readouterr().err
