"""How the page looks: one set of CSS variables for light, one for dark, shared by text and plots."""

from __future__ import annotations

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "paper": "#ffffff",
    "surface": "#f5f6f8",
    "ink": "#14181f",
    "muted": "#586173",
    "line": "#dde1e7",
    "warn": "#9a4a00",
    "run0": "#6f7a8a",
    "run1": "#0a66c2",
    "run2": "#c2410c",
    "run3": "#0f766e",
    "run4": "#7c3aed",
    "kernels": "#0a66c2",
    "step": "#6fb1f0",
    "data": "#12928a",
    "levers": "#e08e0b",
    "evaluation": "#a3acba",
    "checkpoint": "#c6ccd5",
    "other": "#59616e",
}
DARK: Mapping[str, str] = {
    "paper": "#0e1116",
    "surface": "#171c23",
    "ink": "#e9ecf1",
    "muted": "#9ba6b5",
    "line": "#2c3440",
    "warn": "#ffb566",
    "run0": "#97a3b4",
    "run1": "#58a6ff",
    "run2": "#ff8f5c",
    "run3": "#3fcbbd",
    "run4": "#b79bff",
    "kernels": "#3b8eea",
    "step": "#9fcbff",
    "data": "#3fcbbd",
    "levers": "#f0a93b",
    "evaluation": "#6b7686",
    "checkpoint": "#47505d",
    "other": "#aab2bf",
}
FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif'
SERIES = 5  # colours for runs: run0 is the baseline's

# matplotlib wants a colour; each variable gets one of its own, which the SVG then trades for var(--name).
TOKEN: Mapping[str, str] = {name: f"#{0xA0A000 + i:06x}" for i, name in enumerate(LIGHT)}


def variables(values: Mapping[str, str]) -> str:
    """The CSS declarations of a theme."""
    return "".join(f"--{name}:{value};" for name, value in values.items())


def stylesheet() -> str:
    """The style sheet of the page."""
    return (
        f":root{{color-scheme:light dark;--font:{FONT};{variables(LIGHT)}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}" + RULES
    )


RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
  font:16px/1.55 var(--font);overflow-wrap:break-word}
main{max-width:1080px;margin:0 auto;padding:40px 24px 64px}
h1,h2,h3,p{margin:0}
h2{font-size:20px;line-height:1.3;margin:56px 0 4px;letter-spacing:-.01em}
h3{font-size:15px;font-weight:600;margin:24px 0 8px}
.lead{color:var(--muted);max-width:68ch;margin-bottom:16px;font-size:15px}
.over{color:var(--muted);font-size:14px;overflow-wrap:anywhere}
h1{font-size:clamp(24px,4.4vw,36px);line-height:1.2;letter-spacing:-.02em;font-weight:650;
  margin:8px 0 0;max-width:26em;text-wrap:balance;overflow-wrap:anywhere}
.many{margin-top:28px}
.many h1{font-size:clamp(21px,3vw,25px);max-width:none}
.notes{margin:20px 0 0;padding:0;list-style:none;max-width:72ch}
.notes li{padding:2px 0 2px 16px;border-left:3px solid var(--line);margin:8px 0;overflow-wrap:anywhere}
.notes .warn{border-color:var(--warn);color:var(--warn);font-weight:600}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0 0}
.tile{background:var(--surface);border-radius:12px;padding:14px 16px}
.tile b{display:block;font-size:26px;line-height:1.2;font-weight:650;letter-spacing:-.02em;
  font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.tile span{display:block;color:var(--muted);font-size:13.5px;line-height:1.4;margin-top:2px}
.scroll{overflow-x:auto;margin:12px 0 0;-webkit-overflow-scrolling:touch;
  background:linear-gradient(to left,var(--paper) 50%,transparent) right/48px 100% no-repeat local,
    linear-gradient(to left,var(--muted),transparent) right/8px 100% no-repeat scroll}
table{border-collapse:collapse;width:100%;font-size:14.5px;line-height:1.4}
th,td{text-align:left;vertical-align:top;padding:7px 20px 7px 0;border-bottom:1px solid var(--line)}
th:last-child,td:last-child{padding-right:0}
td,th.run{font-variant-numeric:tabular-nums}
thead th{color:var(--muted);font-weight:500;font-size:13.5px;border-bottom-color:var(--muted)}
tbody th{font-weight:400}
th.group{padding-top:26px;font-weight:650;border-bottom-color:var(--muted)}
tr.sum td,tr.sum th{font-weight:650}
th.run i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:7px}
.differs td{font-weight:650}
.wrap td,.wrap th{overflow-wrap:anywhere}
.wrap tbody th{min-width:134px}
.layers .why{min-width:200px;color:var(--muted)}
.figures{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:32px 40px;align-items:start}
figure{margin:20px 0 0;min-width:0}
.figures figure{margin-top:20px}
figure svg{display:block;width:100%;height:auto}
figure svg *{stroke-linejoin:round;stroke-linecap:butt}
figure h3{margin:0 0 10px}
figcaption{color:var(--muted);font-size:13.5px;line-height:1.45;margin-top:6px}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(96px,1fr));gap:14px;margin:12px 0 0}
.samples figure{margin:0}
.samples img{display:block;width:96px;height:96px;object-fit:contain;image-rendering:pixelated;
  background:var(--surface);border-radius:6px}
pre{background:var(--surface);border-radius:12px;padding:14px 16px;margin:12px 0 0;white-space:pre-wrap;
  overflow-wrap:anywhere;font:13px/1.55 ui-monospace,Menlo,Consolas,"Liberation Mono",monospace}
details{margin-top:12px}
details+.lead,pre+.lead{margin-top:16px}
summary{cursor:pointer;font-weight:600;font-size:15px;padding:4px 0}
dl{display:grid;grid-template-columns:minmax(120px,190px) 1fr;gap:8px 24px;font-size:14.5px;margin:12px 0 0}
dt{font-weight:600}
dd{margin:0;color:var(--muted)}
footer{margin-top:64px;padding-top:16px;border-top:1px solid var(--line);color:var(--muted);font-size:13.5px}
@media (max-width:720px){
  main{padding:24px 16px 48px}
  .figures{grid-template-columns:minmax(0,1fr)}
  .tiles{grid-template-columns:repeat(2,minmax(0,1fr))}
  h2{margin-top:44px}
  th,td{padding-right:12px}
  table{font-size:14px}
  dl{grid-template-columns:1fr;gap:0}
  dd{margin-bottom:10px}
}
@media print{main{max-width:none}figure,tr{break-inside:avoid}}
"""
