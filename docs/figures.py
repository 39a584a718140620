"""Draw every figure of the documentation from the package itself: `make figures`.

The tables are those that `print(tableau)` and `Tableau.plot()` show; nothing here is drawn by hand.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import fewstep as fs
from fewstep.noise import EDM
from fewstep.report.figures import times_figure
from fewstep.report.style import INK, SERIES, new_figure, png_of, style
from fewstep.search.ays import descend

OUT = Path(__file__).parent / "assets" / "tables"
HELP = OUT.parent / "cli"
COMMANDS = (
    "optimize", "sample", "compare", "show", "export", "doctor", "reproduce ays-table5", "reproduce usf-cifar10",
    "reproduce cifar10-table", "reproduce text-to-image", "models", "solvers", "times",
)  # fmt: skip
NOISE = EDM()
CALLS = 6

RESTART = ((0.2, 2.0, 2, 1),)
TABLES: dict[str, Callable[[Tensor], fs.SolverSchedule]] = {
    "ddim": fs.solvers.ddim,
    "ddpm": fs.solvers.ddpm,
    "dpmpp_2m": fs.solvers.dpmpp_2m,
    "dpmpp_3m": fs.solvers.dpmpp_3m,
    "dpm_solver_2": fs.solvers.dpm_solver_2,
    "unip": lambda times: fs.solvers.unip(times, order=3),
    "unipc": lambda times: fs.solvers.unipc(times, order=2),
    "deis_rhoab": lambda times: fs.solvers.deis(times, order=3, variant="rhoab"),
    "ipndm": fs.solvers.ipndm,
    "pndm": fs.solvers.pndm,
    "heun": fs.solvers.heun,
    "heun_churn": lambda times: fs.solvers.heun(times, churn=2.0, churn_between=(0.05, 50.0), noise_scale=1.003),
    "dpm_2": fs.solvers.dpm_2,
    "sde_dpmpp_2m": fs.solvers.sde_dpmpp_2m,
    "sa_solver": lambda times: fs.solvers.sa_solver(times, order=2, corrector_order=2, tau=0.4),
    "er_sde": lambda times: fs.solvers.er_sde(times, order=2),
    "restart": lambda times: fs.solvers.restart(times, back=RESTART),
}
STEPS = {"dpm_solver_2": 3, "heun": 3, "heun_churn": 3, "dpm_2": 3, "pndm": 4, "restart": 4}
"""Steps where one step is more than one call."""


def table_of(name: str) -> fs.Tableau:
    """The table of one entry of TABLES."""
    return TABLES[name](fs.times.karras(NOISE, STEPS.get(name, CALLS))).tabulate(NOISE)


def draw_tables() -> None:
    """One picture and one text per solver."""
    for name in TABLES:
        table = table_of(name)
        (OUT / f"{name}.png").write_bytes(png_of(table.plot(), dpi=110))
        (OUT / f"{name}.txt").write_text(f"{table}\n", encoding="utf-8")


def draw_grids() -> None:
    """Every grid with ten steps, placed by log-SNR."""
    entries = [(name, fs.solvers.ddim(grid(NOISE, 10)).tabulate(NOISE)) for name, grid in fs.times.NAMES.items()]
    (OUT / "grids.png").write_bytes(png_of(times_figure(entries), dpi=110))


def gaussian_klub(c: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The KLUB of one step for data N(0, c^2), per dimension (Align Your Steps, lemma 3.3 integrated over t)."""

    def klub(low: Tensor, high: Tensor) -> Tensor:
        low, high = low.double(), high.double()
        inverse = low**-2 - high**-2
        logs = torch.log((high**2 + c**2) * low**2 / ((low**2 + c**2) * high**2))
        return c**4 * (inverse / (2 * c**2) + logs / (2 * c**4) - inverse / (2 * (high**2 + c**2)))

    return klub


def draw_u_shape(c: float = 0.5, n: int = 10) -> None:
    """Coordinate descent on the KLUB of Gaussian data: the bound falls, the sampler's error has a minimum."""
    klub = gaussian_klub(c)
    start = fs.times.karras(NOISE, n, end="min")
    way = descend(klub, start)
    bound = [klub(g[1:], g[:-1]).sum().item() for g in way]
    problem = fs.problems.Gaussian(torch.zeros(1), c**2 * torch.eye(1))
    errors = [problem.kl(fs.solvers.ddim(g).tabulate(NOISE), start="exact").item() for g in way]
    with style():
        figure = new_figure(7.0, 3.0)
        axis = figure.subplots()
        for values, text, colour in (
            (bound, "KLUB (what is minimised)", INK),
            (errors, "KL of DDIM's result", SERIES[0]),
        ):
            relative = [v / values[0] for v in values]
            axis.plot(range(len(way)), relative, color=colour, linewidth=1.6)
            end = (len(way) - 1, relative[-1])
            axis.annotate(text, end, (6, 0), textcoords="offset points", color=colour, va="center")
        best = min(range(len(way)), key=errors.__getitem__)
        axis.plot(best, errors[best] / errors[0], "o", color=SERIES[0], markeredgecolor="white")
        axis.set_yscale("log")
        axis.set_xlabel("sweeps of coordinate descent")
        axis.set_title(f"Gaussian data, c = {c}: {n} steps from EDM's grid, relative to the start", fontweight="normal")
    (OUT / "ays_ushape.png").write_bytes(png_of(figure, dpi=110))
    ends = f"KL of DDIM {errors[0]:.4g} -> {errors[best]:.4g} at sweep {best} -> {errors[-1]:.4g}"
    print(f"KLUB {bound[0]:.4g} -> {bound[-1]:.4g}; {ends}")
    assert math.isfinite(bound[-1])


def help_text(command: str) -> str:
    """What `fewstep COMMAND --help` prints, 100 columns wide and without colours."""
    from typer.testing import CliRunner

    from fewstep.cli import app

    result = CliRunner().invoke(
        app, [*command.split(), "--help"], prog_name="fewstep", env={"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    )
    return "\n".join(line.rstrip() for line in result.output.strip("\n").splitlines()) + "\n"


def help_file(command: str) -> Path:
    """Where the help of a command stands."""
    return HELP / f"{command.split()[-1]}.txt"


def write_help() -> None:
    """One text per command."""
    HELP.mkdir(parents=True, exist_ok=True)
    for command in COMMANDS:
        help_file(command).write_text(help_text(command), encoding="utf-8")


def main() -> None:
    """All of them."""
    OUT.mkdir(parents=True, exist_ok=True)
    write_help()
    draw_tables()
    draw_grids()
    draw_u_shape()


if __name__ == "__main__":
    main()
