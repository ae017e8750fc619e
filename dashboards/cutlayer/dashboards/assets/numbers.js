'use strict';
// Panels without axes: headlines, numbers with a sparkline, bars.

function drawHeadlines(container, headlines) {
  container.replaceChildren(...headlines.map((headline) => {
    const card = el('article', { class: 'headline' }, el('h2', {}, headline.question), el('strong', {}, headline.answer), el('p', {}, headline.detail));
    card.style.setProperty('--meaning', `var(--${headline.meaning})`);
    return card;
  }));
}

const SPARK_WIDTH = 120;
const SPARK_HEIGHT = 34;

function sparkPaths(values) {
  const present = values.filter((value) => value !== null);
  if (present.length < 2) return null;
  const top = Math.max(...present, 1e-12) * 1.05;
  const bottom = Math.min(0, ...present);
  // More points than pixels would only cost time.
  const stride = Math.max(Math.ceil(values.length / SPARK_WIDTH), 1);
  let line = '';
  let isDown = false;
  let firstX = null;
  let lastX = 0;
  values.forEach((value, index) => {
    if (value === null || (index % stride && index !== values.length - 1)) return;
    const x = ((index / (values.length - 1)) * SPARK_WIDTH).toFixed(1);
    const y = (SPARK_HEIGHT - 1 - ((value - bottom) / (top - bottom)) * (SPARK_HEIGHT - 3)).toFixed(1);
    line += `${isDown ? 'L' : 'M'}${x} ${y}`;
    isDown = true;
    firstX ??= x;
    lastX = x;
  });
  return { line, area: `${line}L${lastX} ${SPARK_HEIGHT}L${firstX} ${SPARK_HEIGHT}Z` };
}

class NumberPanel {
  constructor(panel) {
    this.panel = panel;
    this.value = el('b', {});
    this.meaning = el('span', { class: 'unseen' });
    this.line = svg('path', { fill: 'none', 'stroke-width': '1.5' });
    this.area = svg('path', { 'fill-opacity': '0.13' });
    this.spark = svg('svg', { class: 'spark', viewBox: `0 0 ${SPARK_WIDTH} ${SPARK_HEIGHT}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' });
    this.spark.append(this.area, this.line);
    this.empty = el('p', { class: 'empty' });
    this.element = el('section', { class: 'panel number', 'aria-label': panel.title }, el('h3', {}, panel.title), this.value, this.meaning, this.empty, this.spark, infoButton(panel));
  }

  draw(store, context) {
    const series = store.series(this.panel)[0];
    const value = series ? lastValue(series.values) : null;
    const isEmpty = value === null;
    this.value.hidden = isEmpty;
    this.empty.hidden = !isEmpty;
    this.empty.textContent = isEmpty ? emptyText(this.panel, context) : '';
    const paths = series ? sparkPaths(series.values) : null;
    const meaning = isEmpty ? '' : thresholdColour(this.panel, value);
    const colour = meaning || series?.colour || 'ink';
    this.value.textContent = formatValue(value, this.panel.unit, this.panel.decimals);
    this.value.style.setProperty('--meaning', `var(--${colour})`);
    this.meaning.textContent = meaning;
    this.line.setAttribute('d', paths?.line ?? '');
    this.area.setAttribute('d', paths?.area ?? '');
    this.line.style.stroke = `var(--${colour === 'ink' ? 'accent' : colour})`;
    this.area.style.fill = this.line.style.stroke;
  }

  recolour() {}
}

class BarsPanel {
  constructor(panel) {
    this.panel = panel;
    this.list = el('ul', { class: 'bars' });
    this.empty = el('p', { class: 'empty' });
    this.element = el('section', { class: 'panel', 'aria-label': panel.title }, el('h3', {}, panel.title), this.list, this.empty, infoButton(panel));
  }

  draw(store, context) {
    const bars = store.series(this.panel).filter((series) => lastValue(series.values) !== null);
    const largest = Math.max(0, ...bars.map((series) => lastValue(series.values)));
    const isEmpty = largest <= 0;
    this.list.hidden = isEmpty;
    this.empty.hidden = !isEmpty;
    this.empty.textContent = isEmpty ? emptyText(this.panel, context) : '';
    this.list.replaceChildren(...(isEmpty ? [] : bars.map((series) => this.bar(series, largest))));
  }

  bar(series, largest) {
    const value = lastValue(series.values);
    const text = el('span', { class: 'value' }, formatValue(value, this.panel.unit, this.panel.decimals));
    // Of bytes, how the parts relate is the question.
    if (this.panel.unit === 'decbytes' && value < largest) text.append(el('small', {}, ` · ${formatValue(value / largest, 'percentunit', 0)}`));
    const fill = el('i');
    fill.style.width = `${Math.max((value / largest) * 100, 0)}%`;
    const row = el('li', {}, el('span', { class: 'name', title: series.name }, series.name), text, el('span', { class: 'track', 'aria-hidden': 'true' }, fill));
    row.style.setProperty('--meaning', `var(--${thresholdColour(this.panel, value) || series.colour || 'accent'})`);
    return row;
  }

  recolour() {}
}
