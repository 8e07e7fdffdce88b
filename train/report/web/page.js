// The page, from the JSON in #data, and its sliders.

// State: a setting of the sliders -------------------------------------------

const points = data.runs.flatMap((run) => run.points);
const unique = (values) => [...new Set(values)];
const rank = (tau) => (tau === null ? Infinity : tau);

// The values of a setting, of the runs that have several.
function settingsOf(name, usual) {
  const own = data.runs.map((run) => unique(run.points.map((p) => p[name])));
  const found = unique(own.filter((values) => values.length > 1).flat());
  return found.length ? found.sort((a, b) => rank(a) - rank(b)) : [usual];
}

const taus = settingsOf("tau", 1), prunes = settingsOf("prune", 0);
const START = { tau: taus.indexOf(1), prune: prunes.indexOf(0), level: 0 };
const state = { ...START };

// The point of a run: at the setting, or as near as the run has it.
function chosen(run) {
  const tau = taus[state.tau], prune = prunes[state.prune];
  const has = (t, p) => run.points.find((x) => x.tau === t && x.prune === p);
  return has(tau, prune) || has(1, prune) || has(tau, 0) || has(1, 0) || run.points[0];
}

const levelOf = (point) => point.levels[Math.min(state.level, point.levels.length - 1)];

function settingText(point) {
  const samples = point.samples ? `${point.samples} samples, ` : "";
  const tau = point.tau === null ? "the mean" : `${samples}tau ${point.tau}`;
  return point.prune ? `${tau}, ${percent(point.prune)} pruned` : tau;
}

// At a glance and tables ---------------------------------------------------

function glance() {
  data.runs.forEach((run, i) => {
    const headline = run.headline.map(({ title, cell }) => {
      const value = typeof cell === "object" ? cell : { value: cell };
      const interval = value.interval ? el("small", {}, value.interval) : null;
      return el("div", {}, el("dt", {}, title), el("dd", {}, value.value, interval));
    });
    const facts = run.facts.flatMap(([key, value]) =>
      [el("dt", {}, key), el("dd", {}, value)]);
    byId("cards").append(el("article", { class: `card ${color(i)}` },
      el("h3", {}, run.name),
      el("dl", { class: "headline" }, headline),
      el("dl", { class: "facts" }, facts)));
  });
  const results = byId("results-tables");
  results.append(tableOf(data.results));
  if (data.differences) {
    results.append(tableOf(data.differences),
      el("p", { class: "soft" }, "* The interval does not contain zero."));
  } else if (!data.alike) {
    results.append(el("p", {}, "The runs were evaluated on different examples, so"
      + " there are no differences between them."));
  }
  if (data.foreign) results.append(tableOf(data.foreign));
  const kinds = { class: "settings" };
  byId("settings").append(tableOf(data.configuration, kinds.class));
}

// Sliders --------------------------------------------------------------------

const sliders = [
  { name: "tau", label: "Temperature tau", values: taus, text: tauText },
  { name: "prune", label: "Pruning", values: prunes, text: (x) => percent(x) },
  { name: "level", label: "Abstention", values: data.levels,
    text: (x) => (x ? `${x} % left out` : "none") },
].filter((slider) => slider.values.length > 1);

function controls() {
  for (const slider of sliders) {
    slider.input = el("input", {
      type: "range", id: slider.name, min: 0, max: slider.values.length - 1, step: 1,
      value: state[slider.name],
    });
    slider.output = el("output", { for: slider.name });
    slider.input.addEventListener("input", () => {
      state[slider.name] = Number(slider.input.value);
      update(true);
    });
    byId("sliders").append(el("div", { class: "slider" },
      el("label", { for: slider.name }, slider.label), slider.output, slider.input));
  }
  byId("controls").addEventListener("reset", (event) => {
    event.preventDefault();
    Object.assign(state, START);
    for (const slider of sliders) slider.input.value = state[slider.name];
    update(true);
  });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("controls").hidden = !sliders.length;
  if (several) {
    data.runs.forEach((run, i) => byId("legend").append(el("li", {}, swatch(i), run.name)));
  } else {
    byId("legend").remove();
  }
}

let announcing = 0;

function update(announce) {
  for (const slider of sliders) {
    const text = slider.text(slider.values[state[slider.name]]);
    slider.output.textContent = text;
    slider.input.setAttribute("aria-valuetext", text);
  }
  if (!byId("explore")) return;
  numbers();
  for (const figure of tradeFigures) trade(figure);
  if (data.answer === "class") {
    data.runs.forEach((run, i) => reliability(reliabilityFigures[i], run, i));
    risk();
  }
  if (announce) {
    // Once the slider rests, so that a screen reader is not interrupted.
    clearTimeout(announcing);
    announcing = setTimeout(() => { byId("status").textContent = inWords(); }, 300);
  }
}

function inWords() {
  return data.runs.map((run) => {
    const point = chosen(run), values = levelOf(point).values;
    const parts = Object.keys(data.columns).filter((k) => k in values)
      .map((k) => `${named(k).title} ${formatted(k, values[k][0])}`);
    return `${run.name}, ${settingText(point)}: ${parts.join(", ")}.`;
  }).join(" ");
}

function numbers() {
  const names = Object.keys(data.columns).filter((k) => k in levelOf(points[0]).values);
  const classes = data.answer === "class";
  byId("numbers").replaceChildren(tableOf({
    caption: "At this setting, with 95 % intervals",
    head: ["", "setting", ...(classes ? ["answered", "wrong"] : []),
      ...names.map((k) => named(k).title)],
    runs: data.runs.map((_, i) => i),
    rows: data.runs.map((run) => {
      const point = chosen(run), level = levelOf(point);
      const counts = classes
        ? [{ value: `${level.size} of ${point.levels[0].size}`,
             interval: `confidence from ${fixed(level.threshold, 3)}` }, level.errors]
        : [];
      return [run.name, settingText(point), ...counts,
        ...names.map((k) => withInterval(k, level.values[k]))];
    }),
  }));
}

function withInterval(name, [value, low, high]) {
  return {
    value: formatted(name, value),
    interval: `${formatted(name, low)} to ${formatted(name, high)}`,
  };
}

// The trade-off ---------------------------------------------------------------

const tradeFigures = [], reliabilityFigures = [];
let riskFigure = null;

function prepare() {
  const place = byId("figures");
  for (const name of points.length > 1 ? data.against : []) {
    tradeFigures.push({ name, figure: new Figure(place) });
  }
  if (data.answer === "class") {
    data.runs.forEach((_, i) => reliabilityFigures.push(new Figure(place, i)));
    riskFigure = new Figure(place);
  } else {
    byId("explore-title").textContent = "Accuracy and likelihood";
    if (points.length === 1) byId("explore").remove();
  }
}

function trade({ name, figure }) {
  const across = named(name), up = named(data.quality);
  const at = (point) => {
    const values = levelOf(point).values;
    return [values[name].map((v) => v * across.scale),
      values[data.quality].map((v) => v * up.scale)];
  };
  const now = data.runs.map((run) => at(chosen(run)));
  const all = points.map(at);
  const x = { title: across.title,
    ends: extent([...all.map(([a]) => a[0]), ...now.flatMap(([a]) => a)]) };
  const y = { title: up.title,
    ends: extent([...all.map(([, b]) => b[0]), ...now.flatMap(([, b]) => b)]) };
  const plot = axes(x, y);
  const place = ([a, b]) => [plot.sx(a[0]), plot.sy(b[0])];
  data.runs.forEach((run, i) => {
    const group = draw("g", { class: color(i) });
    for (const prune of unique(run.points.map((p) => p.prune))) {
      const curve = run.points.filter((p) => p.prune === prune)
        .sort((a, b) => rank(a.tau) - rank(b.tau));
      group.append(draw("path",
        { class: `faint ${dash(i)}`, d: line(curve.map((p) => place(at(p)))) }));
    }
    for (const point of run.points) {
      const [a, b] = at(point);
      const title = `${run.name}, ${settingText(point)}: ${across.title} `
        + `${fixed(a[0], across.digits)}, ${up.title} ${fixed(b[0], up.digits)}`;
      group.append(marker(i, ...place([a, b]), "mark", 3.5, title));
    }
    const [a, b] = now[i], [px, py] = place(now[i]);
    group.append(
      draw("path", { class: "error", d: `M${plot.sx(a[1])} ${py}H${plot.sx(a[2])}`
        + `M${px} ${plot.sy(b[1])}V${plot.sy(b[2])}` }),
      marker(i, px, py, "now", 7, `${run.name}, ${settingText(chosen(run))}`));
    plot.layer.append(group);
  });
  const best = data.answer === "number" ? "lower" : "higher";
  figure.show(`${up.title} against ${across.title}`, plot.picture,
    `${up.title}, ${best} is better, over ${across.title}, lower is better: a mark for`
    + " every setting, a large one with 95 % intervals for the chosen one.",
    {
      head: [several ? "run and setting" : "setting", across.title, up.title],
      runs: data.runs.flatMap((run, i) => run.points.map(() => i)),
      rows: data.runs.flatMap((run) => run.points.map((point) => [
        (several ? `${run.name}, ` : "") + settingText(point),
        withInterval(name, levelOf(point).values[name]),
        withInterval(data.quality, levelOf(point).values[data.quality]),
      ])),
    });
}

// Reliability --------------------------------------------------------------------

function reliability(figure, run, index) {
  const point = chosen(run), level = levelOf(point), { bins } = point;
  const size = bins.length, total = bins.reduce((sum, bin) => sum + bin.size, 0);
  const tall = 62; // of the counts, below
  const unit = { ends: [0, 1], ticks: [0, 0.2, 0.4, 0.6, 0.8, 1] };
  const plot = axes({ ...unit, title: "confidence" }, { ...unit, title: "accuracy" },
    EDGE.bottom + tall);
  const { layer, sx, sy, low } = plot;
  const floor = HEIGHT - EDGE.bottom + 12;
  const most = Math.max(...bins.map((bin) => bin.size));
  layer.append(draw("path", { class: "guide", d: `M${sx(0)} ${sy(0)}L${sx(1)} ${sy(1)}` }));
  bins.forEach((bin, i) => {
    if (!bin.size) return;
    const high = (bin.size / most) * (tall - 34);
    layer.append(
      draw("rect", { class: "count", x: sx(i / size) + 1, width: sx(1 / size) - sx(0) - 2,
        y: floor - high, height: high }),
      draw("text", { class: "tick", x: sx((i + 0.5) / size), y: floor - high - 3,
        "text-anchor": "middle" }, String(bin.size)),
      draw("path", { class: "error",
        d: `M${sx(bin.confidence)} ${sy(bin.interval[0])}V${sy(bin.interval[1])}` }),
      marker(index, sx(bin.confidence), sy(bin.accuracy), "now", 5,
        `${bin.size} examples of confidence ${fixed(bin.confidence, 2)}:`
        + ` ${percent(bin.accuracy, 1)} right`));
  });
  if (level.size < total) {
    layer.append(draw("rect", { class: "out", x: sx(0), y: EDGE.top,
      width: sx(level.threshold) - sx(0), height: low - EDGE.top }),
    draw("text", { class: "tick", x: sx(0) + 5, y: EDGE.top + 15 }, "not answered"));
  }
  const whose = several ? `${run.name}, ` : "";
  figure.show(`Reliability: ${whose}${settingText(point)}`, plot.picture,
    "Accuracy over confidence in ten bins, with 95 % intervals, and the number of"
    + " examples in each; on the dashed line a run is calibrated.",
    {
      head: ["confidence", "examples", "mean confidence", "accuracy %"],
      rows: bins.map((bin, i) => [
        `${fixed(i / size, 1)} to ${fixed((i + 1) / size, 1)}`, bin.size,
        bin.size ? fixed(bin.confidence, 3) : "–",
        bin.size ? { value: fixed(100 * bin.accuracy, 1),
          interval: bin.interval.map((v) => fixed(100 * v, 1)).join(" to ") } : "–",
      ]),
    });
}

// Risk and coverage ----------------------------------------------------------------

function risk() {
  const curves = data.runs.map((run) => chosen(run).curve);
  const tops = curves.flat().filter(([coverage]) => coverage >= 0.1).map((p) => p[2] === null ? p[1] : p[3]);
  const top = Math.min(1, Math.max(0.05, ...tops));
  const plot = axes({ title: "answered %", ends: [0, 100] },
    { title: "wrong % of the answered", ends: [0, 100 * top] });
  const { layer, sx, sy, low } = plot;
  const y = (share) => Math.max(sy(100 * share), EDGE.top);
  data.runs.forEach((run, i) => {
    const curve = curves[i], level = levelOf(chosen(run));
    const total = chosen(run).levels[0].size;
    const upper = curve.map(([c, , , high]) => [sx(100 * c), y(high)]);
    const lower = curve.map(([c, , less]) => [sx(100 * c), y(less)]).reverse();
    const coverage = level.size / total, wrong = level.errors / level.size;
    layer.append(draw("g", { class: color(i) },
      draw("path", { class: "band", d: `${line([...upper, ...lower])}Z` }),
      draw("path", { class: `line ${dash(i)}`,
        d: line(curve.map(([c, share]) => [sx(100 * c), y(share)])) }),
      draw("path", { class: "guide", d: `M${sx(100 * coverage)} ${y(wrong)}V${low}` }),
      marker(i, sx(100 * coverage), y(wrong), "now", 6,
        `${run.name}: ${percent(coverage, 1)} answered, ${percent(wrong, 1)} of them wrong`)));
  });
  const shown = data.runs.flatMap((run, i) => chosen(run).levels.map((level) => [
    ...(several ? [run.name] : []),
    percent(level.size / chosen(run).levels[0].size, 1),
    { value: percent(level.errors / level.size, 1),
      interval: [level.values.accuracy[2], level.values.accuracy[1]]
        .map((v) => percent(1 - v, 1)).join(" to ") },
    fixed(level.threshold, 3),
  ]));
  riskFigure.show("Risk and coverage: errors as the least confident are left out",
    plot.picture,
    "Share of errors over the share answered, with 95 % bands; a mark at the chosen"
    + " abstention. Lower is better.",
    { head: [...(several ? ["run"] : []), "answered", "wrong", "confidence from"],
      rows: shown });
}

// Votes -------------------------------------------------------------------------------

function votes() {
  if (!data.votes.length) {
    byId("votes").remove();
    return;
  }
  const all = data.votes.flatMap((row) => row.points);
  const powers = unique(all.map(([n]) => Math.log2(n))).sort((a, b) => a - b);
  const plot = axes(
    { title: "outputs of a question", ends: extent(powers), ticks: powers,
      text: (power) => String(Math.round(2 ** power)) },
    { title: "right %", ends: extent(all.flatMap(([, v, e]) => [v - e, v + e]), 0, 100) });
  for (const { run, label, main, points: own } of data.votes) {
    const at = ([n, vote, error], side) =>
      [plot.sx(Math.log2(n)), plot.sy(Math.min(Math.max(vote + side * error, 0), 100))];
    const band = [...own.map((p) => at(p, 1)), ...own.map((p) => at(p, -1)).reverse()];
    plot.layer.append(draw("g", { class: color(run) },
      main ? draw("path", { class: "band", d: `${line(band)}Z` }) : null,
      draw("path",
        { class: `${main ? "line" : "faint"} ${dash(run)}`, d: line(own.map((p) => at(p, 0))) }),
      own.map((p) => marker(run, ...at(p, 0), main ? "now" : "mark", 4, label))));
  }
  new Figure(byId("votes-figure")).show("Accuracy of the vote", plot.picture,
    "Means over random subsets of whole models; of each run's own predictions with bands"
    + " of one standard error over the questions, of its others, as the mean, faint.",
    {
      head: ["", "outputs", "right %", "standard error"],
      runs: data.votes.flatMap((row) => row.points.map(() => row.run)),
      rows: data.votes.flatMap((row) => row.points.map(([n, vote, error]) =>
        [row.label, n, fixed(vote, 1), fixed(error, 1)])),
    });
}

// Training ----------------------------------------------------------------------------

function training() {
  if (!data.curves.length) {
    byId("training").remove();
    return;
  }
  for (const curve of data.curves) {
    const blocks = curve.series.flatMap((series) => series.blocks);
    const scaled = (v) => v * curve.scale;
    const plot = axes(
      { title: "step", ends: extent(blocks.flatMap((b) => [b[0], b[1]]), 0) },
      { title: curve.title, ends: extent(blocks.flatMap((b) => b.slice(2).map(scaled))) });
    for (const { run, blocks: own } of curve.series) {
      const at = (block, which) =>
        [plot.sx((block[0] + block[1]) / 2), plot.sy(scaled(block[which]))];
      const band = [...own.map((b) => at(b, 4)), ...own.map((b) => at(b, 3)).reverse()];
      plot.layer.append(draw("g", { class: color(run) },
        draw("path", { class: "band", d: `${line(band)}Z` }),
        draw("path", { class: `line ${dash(run)}`, d: line(own.map((b) => at(b, 2))) }),
        own.length < 15 ? own.map((b) => marker(run, ...at(b, 2), "now", 4)) : []));
    }
    new Figure(byId("curves")).show(curve.title, plot.picture,
      "Means over steps in a row, with their 95 % bands.",
      {
        head: ["steps", ...(several ? ["run"] : []), curve.title],
        rows: curve.series.flatMap(({ run, blocks: own }) => thinned(own, 25).map((b) => [
          b[0] === b[1] ? String(b[0]) : `${b[0]} to ${b[1]}`,
          ...(several ? [data.runs[run].name] : []),
          { value: fixed(scaled(b[2]), 4),
            interval: b[3] < b[4] ? `${fixed(scaled(b[3]), 4)} to ${fixed(scaled(b[4]), 4)}` : "" },
        ])),
      });
  }
}

// At most so many of them, the first and the last too.
function thinned(values, most) {
  if (values.length <= most) return values;
  return Array.from({ length: most }, (_, i) =>
    values[Math.round((i * (values.length - 1)) / (most - 1))]);
}

// Examples -----------------------------------------------------------------------------

function examples() {
  data.runs.forEach((run, i) => {
    const parts = run.examples.missing
      ? [el("p", {}, `The examples are not shown: ${run.examples.missing}.`)]
      : run.examples.tables.map((table) => (table.rows.length
        ? tableOf({ ...table, caption: several ? `${table.caption}: ${run.name}` : table.caption })
        : el("p", {}, `${table.caption}: ${table.empty}`)));
    if (several) parts.unshift(el("h3", {}, swatch(i), run.name));
    byId("notable").append(...parts);
  });
}

// Notes ---------------------------------------------------------------------------------

function notes() {
  const texts = [
    "Intervals are over the evaluation examples, for this training and seed. Accuracy"
    + " has Wilson's interval, other metrics ±1.96 standard errors of a bootstrap.",
  ];
  if (data.differences) {
    texts.push("Differences are scored on the same resamples of the examples, so what"
      + " makes an example hard for both cancels.");
  }
  if (sliders.some((slider) => slider.name === "tau")) {
    texts.push("Tau divides the posterior variance: above 1 samples are closer to the"
      + " mean. The settings of the sliders average few posterior samples, so the first"
      + " may differ a little from the results above.");
  }
  if (sliders.some((slider) => slider.name === "prune")) {
    texts.push("Pruning sets the share of entries with the lowest signal-to-noise ratio"
      + " to zero.");
  }
  if (data.answer === "class") {
    texts.push("Abstention leaves out the examples of lowest confidence; those as"
      + " confident as the last one answered are answered too. A threshold chosen here"
      + " describes these examples; ivon-jax calibrate --max-risk finds one with a"
      + " guarantee for others.",
    "ECE compares accuracy and confidence in ten bins of equal width. It is above zero"
      + " even of a calibrated model, the more so the fewer examples there are.");
  }
  if (data.answer === "number") {
    texts.push("The NLL is of a Gaussian around the mean of the samples. Its variance is"
      + " theirs plus a noise variance, fitted on the other half of the examples.");
  }
  byId("reading").append(...texts.map((text) => el("li", {}, text)));
}

function contents() {
  for (const heading of document.querySelectorAll("main h2")) {
    const target = `#${heading.closest("section").id}`;
    byId("nav").append(el("li", {}, el("a", { href: target }, heading.textContent)));
  }
}

glance();
controls();
prepare();
update(false);
votes();
training();
examples();
notes();
contents();
