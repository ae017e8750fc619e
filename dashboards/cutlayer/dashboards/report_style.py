"""The report's style sheet. The plots take their colours from its variables, in light and in dark."""

from __future__ import annotations

from typing import Final

__all__ = ["STYLE_SHEET"]

STYLE_SHEET: Final = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1c2430; --muted: #5b6675; --grid: #dfe4ea;
  --joint: #1f6feb; --single: #8aa4c8; --up: #d9730d; --down: #128a7d;
  --run-4: #a23bb5; --run-5: #b3261e; --run-6: #7a6a00; --run-7: #00799c; --run-8: #6b6f76;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #11151b; --card: #1a2029; --ink: #e6eaf0; --muted: #9aa7b8; --grid: #303947;
    --joint: #6ea8ff; --single: #5f7798; --up: #f0a35e; --down: #4cc2b2;
    --run-4: #d58be4; --run-5: #ff8a80; --run-6: #d6c34a; --run-7: #58c4e6; --run-8: #b0b6be;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 70rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { margin: 0; font-size: 1.6rem; line-height: 1.2; }
h2 { margin: 0 0 .75rem; font-size: 1rem; }
p { margin: .4rem 0 0; color: var(--muted); }
section { margin-top: 1rem; padding: 1rem 1.1rem; background: var(--card); border: 1px solid var(--grid);
  border-radius: .6rem; min-width: 0; }
.numbers, .pair { display: grid; gap: 1rem; margin-top: 1rem; }
.numbers { grid-template-columns: repeat(6, 1fr); }
@media (max-width: 65rem) { .numbers { grid-template-columns: repeat(3, 1fr); } }
@media (max-width: 36rem) { .numbers { grid-template-columns: repeat(2, 1fr); } }
.pair { grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
.numbers section, .pair section { margin-top: 0; }
.numbers b { display: block; font-size: 1.4rem; line-height: 1.2; white-space: nowrap; }
.numbers span { color: var(--muted); font-size: .85rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap; }
th { color: var(--muted); font-weight: 500; }
tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child, .name { text-align: left; }
th:last-child, td:last-child { padding-right: 0; }
.part th { padding-top: 1rem; color: var(--ink); font-weight: 700; }
.words td:last-child { white-space: normal; min-width: 12rem; }
summary { font-weight: 600; cursor: pointer; }
details table { margin-top: .75rem; }
"""
