'use strict';
// Panels with a time axis, by uPlot: lines (some of them downwards) and stacked areas. They share one crosshair.

const SPAN_S = 900;
const SHORTEST_SPAN_S = 60;
const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
const EMPTY_TOP = { percentunit: 1, Bps: 1000, decbytes: 1000, s: 0.1 };
const crosshair = uPlot.sync('cutlayer');

function timeRange(times) {
  const last = times.length ? times[times.length - 1] : Date.now() / 1000;
  const first = times.length ? times[0] : last;
  return [last - Math.min(Math.max(last - first, SHORTEST_SPAN_S), SPAN_S), last];
}

// The top of an axis: a little above the highest value, all of a share where it is near.
function topOf(highest, unit) {
  if (highest <= 0) return EMPTY_TOP[unit] ?? 1;
  if (unit === 'percentunit' && highest > 0.6) return 1.001;
  return highest * 1.08;
}

function stacked(columns) {
  const sums = new Array(columns[0]?.length ?? 0).fill(0);
  return columns.map((values) => values.map((value, index) => {
    sums[index] += value ?? 0;
    return columns.some((column) => column[index] !== null) ? sums[index] : null;
  }));
}

class ChartPanel {
  constructor(panel) {
    this.panel = panel;
    this.isStack = panel.shape === 'stack';
    this.plot = null;
    this.names = '';
    this.shown = [];
    this.box = el('div', { class: 'chart', tabindex: '0', role: 'img' });
    this.legend = el('ul', { class: this.isStack ? 'legend areas' : 'legend' });
    this.empty = el('p', { class: 'empty' });
    this.element = el('section', { class: 'panel', 'aria-label': panel.title }, el('h3', {}, panel.title), this.box, this.legend, this.empty, infoButton(panel));
    this.box.addEventListener('keydown', (event) => this.key(event));
    this.box.addEventListener('blur', () => this.plot?.setCursor({ left: -10, top: -10 }, true, true));
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.box);
  }

  draw(store, context) {
    const all = store.series(this.panel);
    const series = all.filter((each) => each.values.some((value) => value !== null));
    const isEmpty = series.length === 0;
    this.box.hidden = this.legend.hidden = isEmpty;
    this.empty.hidden = !isEmpty;
    this.empty.textContent = isEmpty ? emptyText(this.panel, context) : '';
    if (isEmpty) {
      this.drop();
      return;
    }
    this.shown = series;
    this.times = store.times;
    const names = JSON.stringify(series.map((each) => [each.name, each.target]));
    if (names !== this.names) {
      this.drop();
      this.names = names;
    }
    const data = this.data();
    if (this.plot) this.plot.setData(data);
    else this.plot = new uPlot(this.options(), data, this.box);
    this.write();
  }

  data() {
    const columns = this.shown.map((series) => series.values);
    if (this.isStack) return [this.times, ...stacked(columns)];
    return [this.times, ...this.shown.map((series, index) => (this.isBelow(series) ? columns[index].map((value) => (value === null ? null : -value)) : columns[index]))];
  }

  isBelow(series) {
    return this.panel.targets[series.target].is_below;
  }

  size() {
    return { width: Math.max(this.box.clientWidth, 120), height: this.box.clientHeight || 210 };
  }

  options() {
    const muted = cssColour('muted');
    const axis = { stroke: muted, font: FONT, grid: { stroke: cssColour('grid'), width: 1 }, ticks: { show: false } };
    const isCompact = this.panel.unit === 'percentunit';
    return {
      ...this.size(),
      padding: [8, 24, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: crosshair.key, setSeries: false, scales: ['x', null] }, drag: { x: false, y: false }, y: false, points: { size: 6 } },
      scales: { x: { range: () => timeRange(this.times) }, y: { range: () => this.valueRange() } },
      axes: [
        { ...axis, size: 26, space: 70, values: (_, splits) => splits.map((at) => clockText(at).slice(0, this.times.length > 180 ? 5 : 8)) },
        { ...axis, size: 66, space: 34, values: (_, splits) => splits.map((value) => formatValue(Math.abs(value), this.panel.unit, isCompact ? 0 : null)) },
      ],
      series: [{}, ...this.shown.map((series, place) => this.lineOptions(series, place))],
      bands: this.isStack ? this.shown.slice(1).map((series, place) => ({ series: [place + 2, place + 1], fill: this.fill(series, place + 1) })) : [],
      hooks: { setCursor: [() => this.write()] },
    };
  }

  lineOptions(series, place) {
    const colour = cssColour(seriesColour(series, place, this.isStack));
    const isArea = this.isStack ? place === 0 : this.panel.targets.some((target) => target.is_below);
    return { stroke: colour, width: this.isStack ? 1 : 1.75, fill: isArea ? this.fill(series, place) : undefined, points: { show: false }, spanGaps: false };
  }

  fill(series, place) {
    return `${cssColour(seriesColour(series, place, this.isStack))}${this.isStack ? 'b0' : '2b'}`;
  }

  valueRange() {
    const columns = this.data().slice(1);
    let [low, high] = [0, 0];
    for (const values of columns) for (const value of values) if (value !== null) [low, high] = [Math.min(low, value), Math.max(high, value)];
    return [low < 0 ? -topOf(-low, this.panel.unit) : 0, topOf(high, this.panel.unit)];
  }

  // The legend is the chart's text: values under the crosshair, or the last ones.
  write() {
    const at = this.plot?.cursor.idx ?? null;
    const texts = this.shown.map((series) => formatValue(at === null ? lastValue(series.values) : series.values[at], this.panel.unit, this.panel.decimals));
    const items = this.shown.map((series, place) => {
      const swatch = el('i');
      swatch.style.setProperty('--swatch', `var(--${seriesColour(series, place, this.isStack)})`);
      return el('li', {}, swatch, el('span', {}, series.name), texts[place]);
    });
    if (at !== null) items.push(el('li', {}, el('span', {}, `at ${clockText(this.times[at])}`)));
    this.legend.replaceChildren(...items);
    this.box.setAttribute('aria-label', `${this.panel.title}: ${this.shown.map((series, place) => `${series.name} ${texts[place]}`).join(', ')}`);
  }

  key(event) {
    if (!this.plot || !['ArrowLeft', 'ArrowRight', 'Escape'].includes(event.key)) return;
    event.preventDefault();
    if (event.key === 'Escape') {
      this.plot.setCursor({ left: -10, top: -10 }, true, true);
      return;
    }
    const last = this.times.length - 1;
    const step = (event.key === 'ArrowLeft' ? -1 : 1) * (event.shiftKey ? 10 : 1);
    const index = Math.min(Math.max((this.plot.cursor.idx ?? last + 1) + step, 0), last);
    this.plot.setCursor({ left: this.plot.valToPos(this.times[index], 'x'), top: 10 }, true, true);
  }

  recolour() {
    this.drop();
  }

  drop() {
    this.plot?.destroy();
    this.plot = null;
    this.names = '';
  }
}
