'use strict';
// What the worker has said so far: whole at first, then only what is new.

class StatsStore {
  constructor() {
    this.boot = '';
    this.taken = 0;
    this.times = [];
    this.panels = new Map();
    this.document = null;
    this.board = null;
  }

  address() {
    return this.boot ? `/api/stats.json?boot=${encodeURIComponent(this.boot)}&since=${this.taken}` : '/api/stats.json';
  }

  // Returns whether another process answers, or another board, so that all has to be drawn anew.
  take(document) {
    const isNew = 'board' in document;
    if (isNew) {
      this.board = document.board;
      this.bars = new Set(document.board.rows.flatMap((row) => row.panels).filter((panel) => panel.shape === 'bars').map((panel) => panel.index));
      this.times = [];
      this.panels = new Map();
    }
    const numBefore = this.times.length;
    const gaps = new Array(document.times.length).fill(null);
    const excess = Math.max(numBefore + document.times.length - document.kept, 0);
    this.times = this.times.concat(document.times).slice(excess);
    const panels = new Map();
    for (const series of document.series) {
      if (!panels.has(series.panel)) panels.set(series.panel, new Map());
      const key = `${series.target} ${series.name}`;
      const known = this.panels.get(series.panel)?.get(key);
      let values = series.values;
      if (!this.bars.has(series.panel)) {
        const before = known ? known.values : new Array(numBefore).fill(null);
        values = before.concat(values.length ? values : gaps).slice(excess);
      }
      panels.get(series.panel).set(key, { ...series, values });
    }
    this.panels = panels;
    this.boot = document.boot;
    this.taken = document.taken;
    this.document = document;
    return isNew;
  }

  series(panel) {
    return [...(this.panels.get(panel.index)?.values() ?? [])];
  }
}

function lastValue(values) {
  return values.length ? values[values.length - 1] : null;
}
