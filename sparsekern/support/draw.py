"""The canvas of every plot: colours, axes and a figure that no window knows of."""
import contextlib

COLORS = ("#1f6f8b", "#d1603d", "#5b8c5a", "#8e6c8a", "#c99b38", "#4a5a6a")
POSITIVE, NEGATIVE = "#7fb0c4", "#d1603d"
RC = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9aa6b2", "axes.labelcolor": "#3a4552",
       "xtick.color": "#5d6b7c", "ytick.color": "#5d6b7c", "axes.grid": True, "grid.color": "#e6ebf0", "axes.axisbelow": True,
       "legend.frameon": False, "svg.hashsalt": "sparsekern", "svg.fonttype": "path"}


@contextlib.contextmanager
def canvas(width: float, height: float, columns: int = 1, rows: int = 1, **options):
    """A figure that no window and no pyplot state knows of."""
    import matplotlib
    from matplotlib.figure import Figure
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def percent_axis(axis) -> None:
    from matplotlib.ticker import PercentFormatter
    axis.set_major_formatter(PercentFormatter(1.0, decimals=None))
