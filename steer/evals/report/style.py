"""How the page of a report looks, and the one script of it that is ours."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5d636b; --line: #e3e5e8; --paper: #fff;
        --own: #2f74e0; --control: #8b919a; --warn: #b26a00; --warn-paper: #fff6e5; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a2a9b2; --line: #33383e; --paper: #15181c; --own: #5b97f5;
          --control: #8b919a; --warn: #f0b45a; --warn-paper: #2a2214; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto 4rem; max-width: 68rem;
       padding: 0 1.2rem; color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; } h3 { font-size: 1rem; margin: 0 0 .2rem; }
p.summary { max-width: 46rem; font-size: 1.05rem; } p.soft { color: var(--soft); margin: .2rem 0; }
code { font: .92em ui-monospace, monospace; }
.notes { border-left: 4px solid var(--warn); background: var(--warn-paper); border-radius: 4px;
         padding: .7rem 1.1rem; margin: 1.4rem 0; }
.notes h2 { margin: 0 0 .3rem; color: var(--warn); } .notes ul { margin: 0; padding-left: 1.2rem; }
.figures { display: grid; gap: 2rem 2.2rem; margin-top: 1rem;
           grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; min-width: 0; break-inside: avoid; } .plot { min-height: 380px; }
.plot .infolayer text, .plot .cartesianlayer text { fill: var(--ink) !important; }
.plot .annotation text { fill: var(--soft) !important; }
.plot .gridlayer path { stroke: var(--line) !important; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; } th { text-align: left; font-weight: inherit; }
thead th { color: var(--soft); font-size: .87rem; vertical-align: bottom; }
th, td { padding: .22rem 1.2rem .22rem 0; vertical-align: top; }
table.numbers { width: 100%; } table.numbers tbody { border-top: 1px solid var(--line); }
table.numbers tr { break-inside: avoid; }
tbody.task th { padding-top: 1.3rem; font-weight: 600; } tbody.task { break-after: avoid; }
tr.control > th { padding-left: 1.3rem; } .stem, em { color: var(--soft); } em { font-size: .87em; }
tr.control > * { color: var(--soft); } tr.own > th, tr.own .value { font-weight: 600; }
.stem { font-weight: 400; }
.interval { white-space: nowrap; font-variant-numeric: tabular-nums; }
.whole { display: inline-block; min-width: 2.6em; text-align: right; }
.rest { display: inline-block; min-width: 3.4em; }
.unscored { padding-left: 1.9em; font-style: italic; }
.ends { color: var(--soft); }
td.bar, th.bar { width: 40%; padding-right: 0; }
.bar svg { display: block; width: 100%; height: 16px; margin-top: .2rem; overflow: visible; }
.bar path { fill: none; stroke: var(--control); vector-effect: non-scaling-stroke; }
.bar .zero { stroke: var(--soft); stroke-width: 1; } .bar .reach { stroke-width: 4; opacity: .45; }
.bar .point { stroke-width: 9; stroke-linecap: round; }
tr.own .reach, tr.own .point { stroke: var(--own); }
details { margin: .7rem 0; } summary { cursor: pointer; } figure details { font-size: .87rem; }
pre { white-space: pre-wrap; font-size: 12px; } table.facts th { color: var(--soft); }
table.values td, table.values th { white-space: nowrap; font-variant-numeric: tabular-nums; }
@media (max-width: 40rem) {
  body { margin-top: 1rem; } table.numbers, table.numbers tbody { display: block; }
  table.numbers thead { display: none; }
  table.numbers tr { display: grid; grid-template-columns: 13rem 1fr; padding: .25rem 0; }
  table.numbers th { grid-column: 1 / -1; } .numbers tr > * { padding-top: 0; padding-bottom: 0; }
  td.bar { width: auto; } .whole { min-width: 1.6em; } .unscored { padding-left: .9em; } }
@media print { body { margin: 0; max-width: none; font-size: 12px; }
  td.bar, th.bar { width: 30%; } }
"""

DRAW = """
for (const place of document.querySelectorAll("div.plot")) {
  const given = JSON.parse(document.getElementById(place.id + "-data").textContent);
  Plotly.newPlot(place, given.data, given.layout, {responsive: true, displayModeBar: false});
}
"""
