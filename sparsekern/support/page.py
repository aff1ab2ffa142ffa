"""One self-contained HTML page: style, cards, tables, figures inside."""
import base64
import html
import io

STYLE = """
:root { --ink: #1c2430; --soft: #5d6b7c; --line: #dfe5ec; --paper: #fff; --ground: #f5f7fa; --accent: #1f6f8b; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 17px; margin: 0 0 4px; }
.lead, figcaption, .note { color: var(--soft); margin: 0; } .lead { margin-bottom: 20px; }
section, figure { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; margin: 0 0 16px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin-bottom: 16px; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.card b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; } .card span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 10px; border-bottom: 1px solid var(--line); } tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; font-size: 13px; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
.wide { overflow-x: auto; } .grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 16px; }
.grid figure { margin: 0; } figure.full { grid-column: 1 / -1; } img { width: 100%; height: auto; display: block; margin-top: 8px; }
pre { margin: 8px 0 0; overflow-x: auto; font-size: 13px; } summary { cursor: pointer; font-weight: 600; }
@media (max-width: 520px) { .grid { grid-template-columns: 1fr; } }
"""


def page(title: str, lead: str, *sections: str) -> str:
    """The whole page; `lead` and the sections are HTML, the title is text."""
    return "\n".join([
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body><main>",
        f"<h1>{text(title)}</h1>", f'<p class="lead">{lead}</p>', *sections, "</main></body></html>", ""])


def cards(entries: list[tuple[str, str]]) -> str:
    """Large figures with a label each: (HTML of the value, text of the label)."""
    return '<div class="cards">' + "".join(f'<div class="card"><b>{value}</b><span>{text(label)}</span></div>'
                                           for value, label in entries) + "</div>"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Head and cells are HTML."""
    header = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{header}</tr>{body}</table>"


def figure(title: str, caption: str, drawing, wide: bool = False) -> str:
    """A matplotlib figure as an SVG inside the page."""
    out = io.BytesIO()
    drawing.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    data = base64.b64encode(out.getvalue()).decode()
    return (f'<figure{" class=full" if wide else ""}><h2>{text(title)}</h2><figcaption>{text(caption)}</figcaption>'
            f'<img alt="{text(title)}" src="data:image/svg+xml;base64,{data}"></figure>')


def percent(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}%}"


def text(value: object) -> str:
    return html.escape(str(value))
