//! Drawings of a profile in SVG.

use super::millis;
use crate::outputs::escape;
use cupola::{Profile, StepProfile};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Most kernels drawn as a graph, and most values as memory; a reader is lost long before.
const MOST: usize = 3000;

/// A logarithmic axis: values to pixels.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// From the power of ten below the smallest value to the one above the largest.
    fn new(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Axis {
        let values = values.filter(|v| v.is_finite() && *v > 0.0);
        let low = values.clone().fold(f64::INFINITY, f64::min).log10().floor();
        let high = values.fold(0.0, f64::max).log10().ceil();
        match low.is_finite() && high.is_finite() {
            true => Axis {
                low,
                high: high.max(low + 1.0),
                from,
                to,
            },
            false => Axis {
                low: 0.0,
                high: 1.0,
                from,
                to,
            },
        }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value.max(f64::MIN_POSITIVE).log10() - self.low) / (self.high - self.low);
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    fn powers(&self) -> impl Iterator<Item = f64> {
        (self.low as i32..=self.high as i32).map(|p| 10f64.powi(p))
    }
}

/// A colour from cool to hot for a share of the time in 0..=1.
fn heat(share: f64) -> String {
    let hue = 210.0 * (1.0 - share.clamp(0.0, 1.0).sqrt());
    format!("hsl({hue:.0},70%,70%)")
}

/// Operations per second over operations per byte, under the limits of the machine.
pub fn roofline(profile: &Profile) -> String {
    let Some(rates) = &profile.rates else {
        return "<p>Nothing is measured on this device.</p>".into();
    };
    let point = |s: &StepProfile| {
        let seconds = s.time.as_secs_f64();
        let drawn = s.flops > 0 && s.bytes > 0 && seconds > 0.0;
        drawn.then(|| {
            (
                s.flops as f64 / s.bytes as f64,
                s.flops as f64 / seconds / 1e9,
            )
        })
    };
    let points: Vec<(&StepProfile, (f64, f64))> = (profile.steps.iter())
        .filter_map(|s| Some((s, point(s)?)))
        .collect();
    let peak = rates.f32_ops / 1e9;
    let (left, right, top, bottom) = (60.0, 1080.0, 15.0, 430.0);
    let x = Axis::new(
        points.iter().map(|(_, p)| p.0).chain([0.1, 100.0]),
        left,
        right,
    );
    let y = Axis::new(
        points.iter().map(|(_, p)| p.1).chain([1.0, peak]),
        bottom,
        top,
    );
    let mut svg = String::from("<svg viewBox=\"0 0 1100 480\" width=\"1100\">");
    for v in x.powers() {
        let at = x.at(v);
        let _ = write!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{top}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"#eee\"/>\
             <text x=\"{at:.1}\" y=\"445\" text-anchor=\"middle\">{v}</text>"
        );
    }
    for v in y.powers() {
        let at = y.at(v);
        let _ = write!(
            svg,
            "<line x1=\"{left}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#eee\"/>\
             <text x=\"55\" y=\"{at:.1}\" text-anchor=\"end\">{v}</text>"
        );
    }
    svg.push_str("<text x=\"570\" y=\"470\" text-anchor=\"middle\">operations per byte</text>");
    svg.push_str("<text x=\"65\" y=\"12\">GFLOP/s</text>");
    let names = ["L2", "L3", "memory"];
    for ((_, rate), name) in rates.reads.iter().zip(names) {
        let (low, ridge) = (10f64.powf(x.low), peak / (rate / 1e9));
        let (from, to) = (low * rate / 1e9, ridge.max(low));
        let _ = write!(
            svg,
            "<polyline fill=\"none\" stroke=\"#999\" points=\"{left},{:.1} {:.1},{:.1} {right},{:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#666\">{name}</text>",
            y.at(from.min(peak)),
            x.at(to),
            y.at(peak),
            y.at(peak),
            left + 4.0,
            y.at(from.min(peak)) - 3.0
        );
    }
    let run = profile.run.as_secs_f64().max(1e-12);
    for (s, (intensity, speed)) in points {
        let share = s.time.as_secs_f64() / run;
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{:.1}\" fill=\"{}\" stroke=\"#444\"><title>{}</title></circle>",
            x.at(intensity),
            y.at(speed),
            3.0 + 20.0 * share.sqrt(),
            heat(share),
            escape(&hint(s))
        );
    }
    svg + "</svg>"
}

fn hint(s: &StepProfile) -> String {
    let limit = s.fraction().map_or(String::new(), |f| {
        format!(", {:.0}% of its limit", 100.0 * f)
    });
    format!(
        "{}: {:.4} ms{limit}; {}",
        s.name,
        millis(s.time),
        super::sources(s)
    )
}

/// Packed memory: steps from left to right, addresses from bottom to top, a box for each value.
pub fn memory(profile: &Profile) -> String {
    let timeline = &profile.memory;
    let total: u64 = timeline.blocks.values().sum();
    if total == 0 {
        return "<p>No working memory is planned, or its size is known only while running.</p>"
            .into();
    }
    let (left, width, height) = (10.0, 1080.0, 380.0);
    // Blocks on top of each other.
    let mut base = BTreeMap::new();
    let mut end = 0u64;
    for (block, size) in &timeline.blocks {
        base.insert(*block, end);
        end += size;
    }
    let x = |step: usize| left + width * step as f64 / timeline.steps.max(1) as f64;
    let y = |byte: u64| 20.0 + height * (1.0 - byte as f64 / total as f64);
    let mut svg = String::from("<svg viewBox=\"0 0 1100 420\" width=\"1100\">");
    let _ = write!(
        svg,
        "<text x=\"10\" y=\"14\">{total} bytes planned in {} block(s); {} steps</text>",
        timeline.blocks.len(),
        timeline.steps
    );
    for (i, slot) in timeline.slots.iter().enumerate().take(MOST) {
        let first = base[&slot.block] + slot.range.0;
        let (low, high) = (y(first), y(first + slot.range.1));
        let _ = write!(
            svg,
            "<rect x=\"{:.1}\" y=\"{high:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"hsl({},60%,75%)\" stroke=\"#777\" \
             stroke-width=\".5\"><title>{}: {} bytes at {first}, steps {} to {}</title></rect>",
            x(slot.steps.0),
            (x(slot.steps.1 + 1) - x(slot.steps.0)).max(0.5),
            (low - high).max(0.3),
            i * 137 % 360,
            escape(&slot.ty),
            slot.range.1,
            slot.steps.0,
            slot.steps.1
        );
    }
    svg + "</svg>"
}

/// The steps of the graph's plan, each below those whose results it reads; colour is the share of the time.
pub fn graph(profile: &Profile) -> String {
    let steps: Vec<&StepProfile> = profile
        .steps
        .iter()
        .filter(|s| s.at.0 == 0)
        .take(MOST)
        .collect();
    let mut depth: BTreeMap<usize, usize> = BTreeMap::new();
    let mut layers: Vec<Vec<&StepProfile>> = vec![];
    for s in &steps {
        let above = s.reads.iter().filter_map(|r| depth.get(r)).max();
        let own = above.map_or(0, |d| d + 1);
        depth.insert(s.at.1, own);
        if layers.len() <= own {
            layers.push(vec![]);
        }
        layers[own].push(s);
    }
    let (wide, high, gap) = (170.0, 30.0, 24.0);
    let widest = layers.iter().map(Vec::len).max().unwrap_or(1).max(1) as f64;
    let (width, height) = (
        widest * (wide + 14.0) + 20.0,
        layers.len() as f64 * (high + gap) + 20.0,
    );
    let mut place: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for (d, layer) in layers.iter().enumerate() {
        let from = (width - layer.len() as f64 * (wide + 14.0)) / 2.0;
        for (i, s) in layer.iter().enumerate() {
            let at = (
                from + i as f64 * (wide + 14.0),
                10.0 + d as f64 * (high + gap),
            );
            place.insert(s.at.1, at);
        }
    }
    let mut svg = format!(
        "<div style=\"overflow:auto;max-height:80vh\"><svg viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         style=\"max-width:none\">"
    );
    for s in &steps {
        let (x, y) = place[&s.at.1];
        for (fx, fy) in s.reads.iter().filter_map(|r| place.get(r)) {
            let _ = write!(
                svg,
                "<line x1=\"{:.0}\" y1=\"{:.0}\" x2=\"{:.0}\" y2=\"{y:.0}\" stroke=\"#999\"/>",
                fx + wide / 2.0,
                fy + high,
                x + wide / 2.0
            );
        }
    }
    let run = profile.run.as_secs_f64().max(1e-12);
    for s in &steps {
        let (x, y) = place[&s.at.1];
        let name: String = s.name.chars().take(26).collect();
        let _ = write!(
            svg,
            "<a href=\"#s0-{}\"><rect x=\"{x:.0}\" y=\"{y:.0}\" width=\"{wide}\" height=\"{high}\" rx=\"4\" fill=\"{}\" \
             stroke=\"#555\"><title>{}</title></rect><text x=\"{:.0}\" y=\"{:.0}\">{}</text><text x=\"{:.0}\" y=\"{:.0}\" \
             fill=\"#333\">{:.4} ms</text></a>",
            s.at.1,
            heat(s.time.as_secs_f64() / run),
            escape(&hint(s)),
            x + 5.0,
            y + 13.0,
            escape(&name),
            x + 5.0,
            y + 26.0,
            millis(s.time)
        );
    }
    svg + "</svg></div>"
}
