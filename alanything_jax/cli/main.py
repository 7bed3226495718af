"""`alanything VERB ...`: find the verb, run it, turn errors into one readable message.

Exit codes: 0 done, 1 error, 2 usage, 42 preempted: start me again.
"""

from __future__ import annotations

import difflib
import glob
import importlib
import os
import sys
from collections.abc import Sequence

import rich.console

# verb -> (module with `main(argv) -> exit code`, one line for --help)
VERBS = {
    "demo": ("demo", "any-to-any, from nothing to a page; --real: a 135M chat model"),
    "train": ("train", "any algorithm from a recipe: alanything train CONFIG"),
    "llf": ("llf", "critic, critique, refine, verify, pairs, align"),
    "generate": ("generate", "rows in, rows out"),
    "annotate": ("annotate", "several models' answers, judged"),
    "evaluate": ("evaluate", "Eval-Anything, an arena, the accuracy of a run"),
    "data": ("data", "build, convert, inspect, check data"),
    "export": ("export", "a run as a Hugging Face directory"),
    "verify": ("verify", "reload an exported directory and compare"),
    "plan": ("plan", "memory and step time on a TPU topology, without a TPU"),
    "chat": ("chat", "talk to a model"),
}

# What all hosts of a TPU pod run at once; unless told to, other verbs wait for nobody.
_TOGETHER = ("train", "llf")
# Device files of TPUs, NVIDIA, AMD and WSL cards.
_ACCELERATORS = ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia*", "/dev/kfd", "/dev/dxg")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    if not any(map(glob.glob, _ACCELERATORS)):
        # An installed libtpu complains at length where there is no TPU.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        if argv is None and sys.platform == "linux":
            _with_huge_pages()
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from alanything_jax import __version__

        print(__version__)
        return 0
    if argv[0] not in VERBS:
        near = difflib.get_close_matches(argv[0], VERBS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        print(f"there is no verb {argv[0]!r}.{hint}\n\n{_usage()}", file=sys.stderr)
        return 2
    from alanything_jax.sharding import distributed

    try:
        options, argv = distributed.arguments(argv)
        if options or argv[0] in _TOGETHER or "ALANYTHING_COORDINATOR" in os.environ:
            distributed.distributed_init(**options)
        module = importlib.import_module(f"alanything_jax.cli.{VERBS[argv[0]][0]}")
        return module.main(argv[1:])
    except distributed.Preempted as news:
        print(news, file=sys.stderr)
        return distributed.PREEMPTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except (ValueError, OSError, RuntimeError, ArithmeticError, ImportError) as error:
        if os.environ.get("ALANYTHING_TRACEBACK"):
            raise
        code = distributed.PREEMPTED if distributed.lost_peer(error) else 1
        console = rich.console.Console(stderr=True, soft_wrap=True, highlight=False)
        console.print("[bold red]error:[/]", end=" ")
        if code == distributed.PREEMPTED:
            news = "another host is gone: see its log; the same command goes on. "
            console.print(news, end="")
        console.print(str(error) or type(error).__name__, markup=False)
        console.print("(ALANYTHING_TRACEBACK=1 shows where)", style="dim")
    except SystemExit as end:
        if end.code:  # A command line that this host alone may find wrong.
            distributed.leave(2)
        raise
    distributed.leave(code)
    return code


def _with_huge_pages():
    """Start this process anew with huge pages for large buffers, which glibc reads once.

    XLA for CPU takes fresh memory at every call: measured on the playground's model, page
    faults were 40% of the CPU time, and a tenth with huge pages.
    """
    if "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        command = [sys.executable, "-m", "alanything_jax.cli.main", *sys.argv[1:]]
        os.execv(sys.executable, command)


def _usage():
    lines = "\n".join(f"  {verb:<10}{help}" for verb, (_, help) in VERBS.items())
    return (
        f"usage: alanything VERB ...\n\n{lines}\n\nalanything VERB --help tells more. On "
        "several hosts: --coordinator HOST:PORT --num-processes N --process-id I\non each, "
        "or ALANYTHING_COORDINATOR and so on; TPU hosts find each other."
    )


if __name__ == "__main__":
    sys.exit(main())
