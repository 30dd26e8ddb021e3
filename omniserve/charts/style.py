"""How pages look, in light and in dark surroundings, on screens of any width."""

STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --panel: #ffffff; --ink: #1b2430;
  --faint: #5d6878; --rule: #dfe3e9; --fast: #1769d2; --slow: #d9820f; --kv: #7a52c7;
  --good: #177a45; --bad: #c0322b; --s1: #1769d2; --s2: #d9820f; --s3: #177a45; --s4: #c0322b;
  --s5: #7a52c7; --s6: #0f8b9d; --s7: #a3478f; --s8: #6b7280; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #11151b; --panel: #1a2029; --ink: #e6eaf0; --faint: #97a3b4;
    --rule: #2e3744; --fast: #62a8ff; --slow: #f0a63c; --kv: #b493f2; --good: #4cc585;
    --bad: #ff7b72; --s1: #62a8ff; --s2: #f0a63c; --s3: #4cc585; --s4: #ff7b72; --s5: #b493f2;
    --s6: #4cc9dc; --s7: #e08ccb; --s8: #9ca3af; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 32px clamp(12px, 3vw, 24px) 64px;
  background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 28px; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 36px 0 12px; }
h3 { font-size: 14px; margin: 0; font-weight: 600; }
.facts, .note, figcaption { color: var(--faint); margin: 4px 0 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 14px;
  margin-top: 24px; }
.card, figure, .scroll, pre { background: var(--panel); border: 1px solid var(--rule);
  border-radius: 10px; }
.card { padding: 14px 16px; }
.card h3 { color: var(--faint); font-weight: 500; }
.card .note { font-size: 13px; }
.value { font-size: 28px; font-weight: 650; margin: 2px 0 0; letter-spacing: -0.01em; }
.good .value { color: var(--good); }
.bad .value { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 12px; text-align: right; white-space: nowrap; }
th { color: var(--faint); font-weight: 500; font-size: 13px; white-space: normal;
  vertical-align: bottom; }
tr + tr td { border-top: 1px solid var(--rule); }
thead th { border-bottom: 1px solid var(--rule); }
.text { text-align: left; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr));
  gap: 14px; }
figure { margin: 0; padding: 14px 16px 8px; }
figcaption { font-size: 13px; margin-top: 0; }
.legend { margin: 0 0 10px; }
.key { margin-right: 20px; }
.key::before { content: ""; display: inline-block; width: 12px; height: 12px; border-radius: 3px;
  background: var(--key); margin-right: 7px; vertical-align: -1px; }
.chart { display: block; width: 100%; height: auto; margin-top: 6px; }
.chart text { font-size: 12px; fill: var(--faint); font-variant-numeric: tabular-nums; }
.chart .mark-label { fill: var(--ink); paint-order: stroke; stroke: var(--panel);
  stroke-width: 4px; stroke-linejoin: round; }
.grid { stroke: var(--rule); stroke-width: 1; }
.axis, .tick { stroke: var(--faint); stroke-width: 1; }
.mark { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 4 4; }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.dashed { stroke-width: 1.6; stroke-dasharray: 5 4; }
.dots { fill: none; stroke-width: 3; stroke-linecap: round; opacity: 0.45; }
.dots.large { stroke-width: 7.5; opacity: 1; }
.spread { stroke-width: 1.6; }
.area { opacity: 0.88; }
pre { padding: 12px 14px; margin: 6px 0 18px; white-space: pre-wrap;
  overflow-wrap: anywhere;
  font: 13px/1.5 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
"""
