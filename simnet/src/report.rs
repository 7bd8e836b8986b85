//! One page that shows a run: what went wrong and when, how long messages took, what waited where. It needs nothing but a
//! browser.

use crate::plan::{Plan, Step, What};
use godwit_checker::Delivery;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What waits at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) at: Duration,
    /// In devices, to be sent.
    pub(crate) unsent: usize,
    /// In relays, for another home.
    pub(crate) outboxes: usize,
    /// Sent, and not told to a device that must get it.
    pub(crate) undelivered: usize,
    pub(crate) relays_down: usize,
}

#[derive(Debug, Default)]
struct State {
    began: Duration,
    deliveries: Vec<Delivery>,
    waiting: Vec<Waiting>,
}

/// Collects what a report shows, while a run lasts. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<State>>);

impl Recorder {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the plan's time line begins.
    pub(crate) fn begin(&self, at: Duration) {
        self.state().began = at;
    }

    pub(crate) fn delivered(&self, delivery: Delivery) {
        self.state().deliveries.push(delivery);
    }

    pub(crate) fn waits(&self, waiting: Waiting) {
        self.state().waiting.push(waiting);
    }

    /// The page, for the run of `plan` that was recorded. `verdict` says how it ended.
    pub fn page(&self, title: &str, plan: &Plan, verdict: &str) -> String {
        Page { state: &self.state(), plan }.render(title, verdict)
    }
}

type Count = fn(&Waiting) -> usize;

const WIDTH: f64 = 1080.0;
/// Left of the plots.
const MARGIN: f64 = 150.0;
const LANE: f64 = 18.0;
const COLORS: [&str; 9] =
    ["#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f", "#6b7280"];

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn region(device: &str) -> &str {
    device.split_once('@').and_then(|(_, rest)| rest.split_once('/')).map_or("?", |(region, _)| region)
}

struct Page<'a> {
    state: &'a State,
    plan: &'a Plan,
}

impl Page<'_> {
    fn end(&self) -> f64 {
        let last = self.state.waiting.last().map_or(Duration::ZERO, |waiting| waiting.at);
        last.saturating_sub(self.state.began).max(self.plan.heals).as_secs_f64().max(1.0)
    }

    fn x(&self, at: f64) -> f64 {
        MARGIN + (at / self.end()).clamp(0.0, 1.0) * (WIDTH - MARGIN - 10.0)
    }

    fn since(&self, at: Duration) -> f64 {
        at.saturating_sub(self.state.began).as_secs_f64()
    }

    fn axis(&self, svg: &mut String, height: f64) {
        let every = [1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 3600.0, 21_600.0];
        let step = every.into_iter().find(|step| self.end() / step <= 12.0).unwrap_or(86_400.0);
        let mut at = 0.0;
        while at <= self.end() {
            let x = self.x(at);
            let _ = write!(svg, "<line x1='{x:.1}' x2='{x:.1}' y1='0' y2='{height:.0}' class='grid'/>");
            let _ = write!(svg, "<text x='{x:.1}' y='{:.0}' class='tick'>{at:.0} s</text>", height + 13.0);
            at += step;
        }
        let heals = self.x(self.plan.heals.as_secs_f64());
        let _ = write!(svg, "<line x1='{heals:.1}' x2='{heals:.1}' y1='0' y2='{height:.0}' class='heals'/>");
    }

    /// What went wrong, a lane for each host.
    fn faults(&self) -> String {
        let mut lanes: Vec<String> = self.plan.relays.iter().map(|relay| relay.id.clone()).collect();
        lanes.extend(self.plan.devices.iter().map(|device| device.id.clone()));
        lanes.push("network".to_owned());
        #[expect(clippy::cast_precision_loss, reason = "a scenario has few hosts")]
        let y = |lane: usize| lane as f64 * LANE;
        let height = y(lanes.len());
        let mut svg = String::new();
        self.axis(&mut svg, height);
        for (lane, name) in lanes.iter().enumerate() {
            let _ = write!(svg, "<text x='0' y='{:.0}' class='lane'>{}</text>", y(lane) + 13.0, escape(name));
        }
        for step in self.plan.steps.iter().filter(|step| step.is_fault()) {
            let (host, color) = match &step.what {
                What::Relay { relay, .. } => (relay.as_str(), COLORS[1]),
                What::Device { device, .. } => (device.as_str(), COLORS[3]),
                What::Do { .. } | What::Cut(_) | What::Link(_) => ("network", COLORS[4]),
            };
            let Some(lane) = lanes.iter().position(|lane| lane == host) else { continue };
            let Step { at, lasts, .. } = step;
            let (from, to) = (self.x(at.as_secs_f64()), self.x((*at + *lasts).min(self.plan.heals).as_secs_f64()));
            let _ = write!(
                svg,
                "<rect x='{from:.1}' y='{:.0}' width='{:.1}' height='12' rx='2' fill='{color}'><title>{}</title></rect>",
                y(lane) + 3.0,
                (to - from).max(3.0),
                escape(&step.to_string())
            );
        }
        figure(&svg, height + 20.0)
    }

    /// Each delivery: when it was told, and how long after it was written.
    fn latencies(&self, pairs: &BTreeMap<(String, String), Vec<f64>>) -> String {
        let height = 220.0;
        // From a millisecond to some three hours, by powers of ten.
        let y = |seconds: f64| height - (seconds.max(0.001).log10() + 3.0) / 7.0 * height;
        let mut svg = String::new();
        self.axis(&mut svg, height);
        for (power, label) in
            [(0.001, "1 ms"), (0.01, "10 ms"), (0.1, "100 ms"), (1.0, "1 s"), (10.0, "10 s"), (100.0, "100 s")]
        {
            let _ = write!(
                svg,
                "<text x='0' y='{0:.0}' class='lane'>{label}</text><line x1='{MARGIN}' x2='{WIDTH}' y1='{0:.0}' y2='{0:.0}' class='grid'/>",
                y(power)
            );
        }
        for Delivery { from, to, put, told } in &self.state.deliveries {
            let pair = (region(from).to_owned(), region(to).to_owned());
            let color = COLORS[pairs.keys().position(|known| *known == pair).unwrap_or(8) % COLORS.len()];
            let took = told.saturating_sub(*put).as_secs_f64();
            let _ = write!(
                svg,
                "<circle cx='{:.1}' cy='{:.1}' r='2' fill='{color}'><title>{} to {}: {took:.3} s</title></circle>",
                self.x(self.since(*told)),
                y(took),
                escape(from),
                escape(to)
            );
        }
        figure(&svg, height + 20.0)
    }

    fn waiting(&self) -> String {
        let height = 160.0;
        let series: [(&str, Count); 4] = [
            ("unsent, in devices", |waiting| waiting.unsent),
            ("in outboxes of relays", |waiting| waiting.outboxes),
            ("sent, and not with a device", |waiting| waiting.undelivered),
            ("relays down", |waiting| waiting.relays_down),
        ];
        let most = self.state.waiting.iter().flat_map(|waiting| series.map(|(_, value)| value(waiting))).max();
        #[expect(clippy::cast_precision_loss, reason = "what waits is counted in thousands")]
        let y = |count: usize| height - count as f64 / most.unwrap_or(1).max(1) as f64 * (height - 10.0);
        let mut svg = String::new();
        self.axis(&mut svg, height);
        let _ = write!(
            svg,
            "<text x='0' y='14' class='lane'>{}</text><text x='0' y='{height:.0}' class='lane'>0</text>",
            most.unwrap_or(0)
        );
        let mut legend = String::new();
        for (number, (name, value)) in series.iter().enumerate() {
            let color = COLORS[[0, 4, 2, 1][number]];
            let mut line = String::new();
            for waiting in &self.state.waiting {
                let _ = write!(line, "{:.1},{:.1} ", self.x(self.since(waiting.at)), y(value(waiting)));
            }
            let _ = write!(svg, "<polyline points='{line}' fill='none' stroke='{color}' stroke-width='1.5'/>");
            let _ = write!(legend, "<span><i style='background:{color}'></i>{name}</span>");
        }
        format!("<p class='legend'>{legend}</p>{}", figure(&svg, height + 20.0))
    }

    fn render(&self, title: &str, verdict: &str) -> String {
        let mut pairs: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
        for Delivery { from, to, put, told } in &self.state.deliveries {
            let pair = (region(from).to_owned(), region(to).to_owned());
            pairs.entry(pair).or_default().push(told.saturating_sub(*put).as_secs_f64());
        }
        let mut rows = String::new();
        for (number, ((from, to), took)) in pairs.iter_mut().enumerate() {
            took.sort_by(f64::total_cmp);
            let at = |share: usize| took[(took.len() - 1) * share / 100];
            let _ = write!(
                rows,
                "<tr><td><i style='background:{}'></i>{} to {}</td><td>{}</td><td>{:.3}</td><td>{:.3}</td><td>{:.3}</td></tr>",
                COLORS[number % COLORS.len()],
                escape(from),
                escape(to),
                took.len(),
                at(50),
                at(99),
                at(100)
            );
        }
        let class = if verdict.starts_with("clean") { "clean" } else { "broken" };
        format!(
            "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>\
             <title>{0}</title><style>{STYLE}</style><h1>{0}</h1><p class='{class}'>{1}</p>\
             <h2>What went wrong</h2><p>The dashed line is where everything heals. Hover for details.</p>{2}\
             <h2>Deliveries</h2><p>Each point is a message that an app was told: when, and how long after it was written.</p>{3}\
             <table><tr><th>from, to</th><th>deliveries</th><th>median, s</th><th>99 %, s</th><th>longest, s</th></tr>{rows}</table>\
             <h2>What waited where</h2>{4}</html>\n",
            escape(title),
            escape(verdict),
            self.faults(),
            self.latencies(&pairs),
            self.waiting()
        )
    }
}

fn figure(svg: &str, height: f64) -> String {
    format!("<svg viewBox='0 0 {WIDTH} {height:.0}' width='100%' role='img'>{svg}</svg>")
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#111827;\
background:#fff}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}p{margin:.3rem 0;color:#4b5563}.clean{color:#059669;\
font-weight:600}.broken{color:#dc2626;font-weight:600;white-space:pre-wrap}svg{overflow:visible}.grid{stroke:#e5e7eb}\
.heals{stroke:#059669;stroke-dasharray:4 3}.tick{font-size:10px;fill:#6b7280;text-anchor:middle}.lane{font-size:11px;\
fill:#374151}table{border-collapse:collapse;margin-top:1rem}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid \
#e5e7eb}td:first-child,th:first-child{text-align:left}i{display:inline-block;width:.7em;height:.7em;border-radius:2px;\
margin-right:.4em}.legend span{margin-right:1.2rem}@media(prefers-color-scheme:dark){body{background:#111827;color:#f9fafb}p{\
color:#9ca3af}.grid{stroke:#374151}.lane{fill:#d1d5db}td,th{border-color:#374151}}";
