// Draws one dashboard's panels with Grafana's own components (@grafana/ui): what a browser would show, without a server.
import React from 'react';
import { createRoot } from 'react-dom/client';
import { createDataFrame, createTheme, FieldType, getDisplayProcessor, getValueFormat, ThemeContext, dateTime } from '@grafana/data';
import { BarGauge, BigValue, GlobalStyles, PanelChrome, TimeSeries } from '@grafana/ui';
import 'uplot/dist/uPlot.min.css';

const COLUMNS = 24;
const CELL_H = 30;
const GAP = 8;
const { dashboard, answers, from, to, width, mode } = window.CUTLAYER;
const theme = createTheme({ colors: { mode } });
const palette = theme.visualization.palette;
const timeRange = { from: dateTime(from), to: dateTime(to), raw: { from: dateTime(from), to: dateTime(to) } };

const named = (legend, labels) => legend.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] ?? '');

function seriesOf(panel) {
  const found = [];
  for (const target of panel.targets) {
    for (const series of answers[`${panel.id}${target.refId}`] ?? []) {
      found.push({ name: named(target.legendFormat, series.metric), points: series.values ?? [series.value] });
    }
  }
  return found;
}

function overridden(panel, name) {
  const rules = panel.fieldConfig.overrides.filter((one) => one.matcher.options === name);
  return Object.fromEntries(rules.flatMap((rule) => rule.properties).map((one) => [one.id, one.value]));
}

const formatted = (unit, number) => {
  const value = getValueFormat(unit)(Number(number));
  return `${value.prefix ?? ''}${value.text}${value.suffix ?? ''}`;
};

function fieldOf(panel, series, index) {
  const defaults = panel.fieldConfig.defaults;
  const own = overridden(panel, series.name);
  const custom = { ...defaults.custom };
  if (own['custom.transform']) custom.transform = own['custom.transform'];
  const field = {
    name: series.name,
    type: FieldType.number,
    values: series.points.map(([, value]) => (isNaN(Number(value)) ? null : Number(value))),
    config: {
      displayName: series.name,
      unit: own.unit ?? defaults.unit,
      decimals: defaults.decimals,
      min: defaults.min,
      thresholds: { ...defaults.thresholds, steps: defaults.thresholds.steps.map((s) => ({ ...s, value: s.value ?? -Infinity })) },
      color: own.color ?? (defaults.color?.mode === 'palette-classic' ? { mode: 'fixed', fixedColor: palette[index % palette.length] } : defaults.color),
      custom,
    },
  };
  return field;
}

function framesOf(panel) {
  return seriesOf(panel).map((series, index) => {
    const frame = createDataFrame({
      fields: [
        { name: 'Time', type: FieldType.time, values: series.points.map(([at]) => at * 1000), config: {} },
        fieldOf(panel, series, index),
      ],
    });
    const field = frame.fields[1];
    const numbers = field.values.filter((value) => value !== null);
    const [min, max] = [Math.min(...numbers), Math.max(...numbers)];
    field.state = { range: { min, max, delta: max - min }, seriesIndex: index };
    field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' });
    frame.fields[0].display = getDisplayProcessor({ field: frame.fields[0], theme, timeZone: 'utc' });
    return frame;
  });
}

function Empty({ panel }) {
  return <div style={{ padding: 16, color: theme.colors.text.secondary, textAlign: 'center' }}>{panel.fieldConfig.defaults.noValue ?? 'No data'}</div>;
}

function Numbers({ panel, frames, width, height }) {
  const field = frames[0].fields[1];
  const last = [...field.values].reverse().find((value) => value !== null);
  const value = field.display(last);
  return <BigValue width={width} height={height} theme={theme} value={value} colorMode={panel.options.colorMode} graphMode={panel.options.graphMode}
    justifyMode="auto" textMode={panel.options.textMode} sparkline={{ x: frames[0].fields[0], y: field, timeRange }} />;
}

function Bars({ panel, frames, width, height }) {
  const rows = frames.map(({ fields: [, field] }) => {
    const number = [...field.values].reverse().find((value) => value !== null) ?? 0;
    return { field, number, value: field.display(number) };
  });
  const max = Math.max(...rows.map((row) => row.number));
  const rowHeight = Math.min(60, height / rows.length);
  return <div style={{ padding: '0 8px' }}>{rows.map((row) => (
    <div key={row.field.name} style={{ height: rowHeight }}>
      <BarGauge theme={theme} width={width - 16} height={rowHeight - 6} field={{ ...row.field.config, min: 0, max }} display={row.field.display}
        value={{ ...row.value, title: row.field.name }} orientation="horizontal" displayMode="basic" showUnfilled text={panel.options.text} valueDisplayMode="color" namePlacement="left"
        alignmentFactors={{ title: rows.map((r) => r.field.name).reduce((a, b) => (a.length > b.length ? a : b)), text: rows.map((r) => r.value.text + (r.value.suffix ?? '')).reduce((a, b) => (a.length > b.length ? a : b)) }} />
    </div>))}</div>;
}

function Lines({ panel, frames, width, height }) {
  return <TimeSeries frames={frames} timeRange={timeRange} timeZone="utc" width={width} height={height} legend={panel.options.legend} options={{}} />;
}

function Cells({ panel }) {
  const columns = panel.targets.map((target) => ({ name: target.legendFormat, unit: overridden(panel, target.legendFormat).unit, series: answers[`${panel.id}${target.refId}`] ?? [] }));
  const keyed = (labels) => Object.entries(labels).filter(([name]) => name !== '__name__').map(([, value]) => value).join(' · ');
  const rows = [...new Set(columns.flatMap((column) => column.series.map((series) => keyed(series.metric))))];
  if (!rows.length) return <Empty panel={panel} />;
  const shown = panel.targets.length > 1 ? columns : [];
  const cell = { padding: '6px 8px', borderBottom: `1px solid ${theme.colors.border.weak}`, textAlign: 'left', fontSize: 13 };
  const text = (column, row) => {
    const value = column.series.find((series) => keyed(series.metric) === row)?.value?.[1];
    return value === undefined ? '' : formatted(column.unit, value);
  };
  return <table style={{ width: '100%', borderCollapse: 'collapse' }}>
    <thead><tr><th style={cell}></th>{shown.map((column) => <th key={column.name} style={cell}>{column.name}</th>)}</tr></thead>
    <tbody>{rows.map((row) => <tr key={row}><td style={cell}>{row}</td>{shown.map((column) => <td key={column.name} style={cell}>{text(column, row)}</td>)}</tr>)}</tbody>
  </table>;
}

// Grafana draws these two in plugins that @grafana/ui has not: a likeness, from the same answers and the same options.
function Heat({ panel, width, height }) {
  const bound = (series) => (series.metric.le === '+Inf' ? Infinity : Number(series.metric.le));
  const rows = [...(answers[`${panel.id}A`] ?? [])].sort((a, b) => bound(a) - bound(b));
  const times = rows[0]?.values.map(([at]) => at) ?? [];
  if (!times.length) return <Empty panel={panel} />;
  const cells = rows.map((row, index) => row.values.map(([, value], at) => Math.max(0, value - (index ? rows[index - 1].values[at]?.[1] ?? 0 : 0))));
  const most = Math.max(...cells.flat(), 1e-9);
  const [left, below] = [70, 20];
  const [w, h] = [(width - left) / times.length, (height - below) / rows.length];
  const every = Math.ceil(rows.length / 8);
  return <svg width={width} height={height} fontSize={11} fill={theme.colors.text.secondary}>
    {rows.map((row, y) => y % every ? null : <text key={y} x={left - 6} y={height - below - y * h - h / 2 + 4} textAnchor="end">{row.metric.le === '+Inf' ? '+Inf' : formatted(panel.options.yAxis.unit, row.metric.le)}</text>)}
    {cells.map((row, y) => row.map((value, x) => value > 0 && <rect key={`${x} ${y}`} x={left + x * w} y={height - below - (y + 1) * h} width={w - 1} height={h - 1} fill="#5794f2" opacity={0.15 + 0.85 * Math.sqrt(value / most)} />))}
    {[0, Math.floor(times.length / 2), times.length - 1].map((x) => <text key={x} x={Math.min(left + x * w, width - 50)} y={height - 5}>{dateTime(times[x] * 1000).utc().format('HH:mm:ss')}</text>)}
  </svg>;
}

function Against({ panel, width, height }) {
  const [xs, ...others] = seriesOf(panel);
  if (!xs || !others.length) return <Empty panel={panel} />;
  const at = new Map(xs.points.map(([time, value]) => [time, Number(value)]));
  const lines = others.map((series) => ({ ...series, pairs: series.points.filter(([time]) => at.has(time)).map(([time, value]) => [at.get(time), Number(value)]) }));
  const pairs = lines.flatMap((line) => line.pairs);
  const [left, below] = [50, 50];
  const [mx, my] = [Math.max(...pairs.map(([x]) => x)), Math.max(...pairs.map(([, y]) => y))];
  const place = ([x, y]) => [left + (x / mx) * (width - left - 20), 10 + (1 - y / my) * (height - below - 10)];
  const colour = (name) => theme.visualization.getColorByName(overridden(panel, name).color.fixedColor);
  return <svg width={width} height={height} fontSize={12} fill={theme.colors.text.secondary}>
    {[0, 0.5, 1].map((share) => <text key={share} x={left - 8} y={place([0, share * my])[1] + 4} textAnchor="end">{formatted(panel.fieldConfig.defaults.unit, share * my)}</text>)}
    {[0, 0.5, 1].map((share) => <text key={share} x={place([share * mx, 0])[0]} y={height - below + 18} textAnchor={share === 1 ? 'end' : 'middle'}>{formatted(overridden(panel, xs.name).unit, share * mx)}</text>)}
    {lines.map((line, index) => <g key={line.name}>
      <polyline points={line.pairs.map((pair) => place(pair).join(',')).join(' ')} fill="none" stroke={colour(line.name)} />
      {line.pairs.map((pair, number) => <circle key={number} cx={place(pair)[0]} cy={place(pair)[1]} r={2} fill={colour(line.name)} />)}
      <text x={left + index * 80} y={height - 8} fill={colour(line.name)}>{line.name}</text>
    </g>)}
  </svg>;
}

function Content({ panel, width, height }) {
  if (panel.type === 'table') return <Cells panel={panel} />;
  if (panel.type === 'heatmap') return <Heat panel={panel} width={width} height={height} />;
  if (panel.type === 'xychart') return <Against panel={panel} width={width} height={height} />;
  const frames = framesOf(panel);
  if (!frames.length) return <Empty panel={panel} />;
  const Drawn = { stat: Numbers, bargauge: Bars, timeseries: Lines }[panel.type];
  return <Drawn panel={panel} frames={frames} width={width} height={height} />;
}

function Page() {
  const column = (width - GAP) / COLUMNS;
  const bottom = Math.max(...dashboard.panels.map((panel) => panel.gridPos.y + panel.gridPos.h));
  return <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <div style={{ position: 'relative', width, height: bottom * (CELL_H + GAP) + 60, background: theme.colors.background.canvas, color: theme.colors.text.primary, fontFamily: theme.typography.fontFamily }}>
      <div style={{ padding: '16px 8px', fontSize: 20 }}>{dashboard.title}</div>
      {dashboard.panels.map((panel) => {
        const box = { position: 'absolute', left: GAP + panel.gridPos.x * column, top: 56 + panel.gridPos.y * (CELL_H + GAP) };
        if (panel.type === 'row') return <div key={panel.id} style={{ ...box, fontSize: 16, paddingTop: 6 }}>{panel.title}</div>;
        const [w, h] = [panel.gridPos.w * column - GAP, panel.gridPos.h * (CELL_H + GAP) - GAP];
        return <div key={panel.id} style={box}>
          <PanelChrome title={panel.title} width={w} height={h} padding={panel.type === 'timeseries' ? 'md' : 'none'}>
            {(innerWidth, innerHeight) => <Content panel={panel} width={innerWidth} height={innerHeight} />}
          </PanelChrome>
        </div>;
      })}
    </div>
  </ThemeContext.Provider>;
}

class Shown extends React.Component {
  state = {};
  static getDerivedStateFromError(error) { return { error }; }
  render() { return this.state.error ? <pre>{String(this.state.error.stack)}</pre> : this.props.children; }
}
document.body.style.margin = '0';
createRoot(document.getElementById('root')).render(<Shown><Page /></Shown>);
