//! The report of a run: one page of HTML with curves in SVG; no script, nothing from elsewhere.

use super::scores_text;
use super::watch::History;
use crate::outputs::escape;
use cupola::train::{Scores, Trainer};
use std::fmt::Write;

const STYLE: &str = "body{font:14px sans-serif;margin:2em;max-width:1200px}table{border-collapse:collapse}\
td,th{border-bottom:1px solid #ddd;padding:.15em .7em;text-align:right}td:first-child,th:first-child{text-align:left}\
svg{max-width:100%;background:#fff;border:1px solid #ddd}svg text{font:11px sans-serif}pre{background:#f6f6f6;padding:.7em}";

/// Drawing area of a chart: left, right, top, bottom.
const AREA: (f64, f64, f64, f64) = (70.0, 1080.0, 15.0, 320.0);

/// Points of a curve: step and value.
type Curve = Vec<(f64, f64)>;

/// The page.
pub fn page(trainer: &Trainer, history: &History, test: Option<&Scores>) -> String {
    let title = escape(&trainer.config().name);
    let mut page = format!(
        "<!doctype html><meta charset=\"utf-8\"><title>{title}: training</title><style>{STYLE}</style>\
         <h1>{title}</h1><pre>{}</pre>",
        escape(&summary(trainer, history, test))
    );
    let points = history.points.iter();
    let losses: Curve = points.clone().map(|p| (p.step as f64, p.loss)).collect();
    let rates: Curve = points.map(|p| (p.step as f64, p.lr)).collect();
    let of = |name: &str| -> Curve {
        let all = history.validations.iter();
        all.filter_map(|(step, s)| Some((*step as f64, s.value(name)?)))
            .collect()
    };
    let mut sections = vec![(
        "Loss".to_string(),
        chart(&[("training", &losses), ("validation", &of("loss"))]),
    )];
    if let Some((_, scores)) = history.validations.first() {
        for (metric, _) in &scores.metrics {
            let name = metric.name();
            sections.push((name.to_string(), chart(&[("validation", &of(name))])));
        }
    }
    sections.push(("Learning rate".into(), chart(&[("", &rates)])));
    sections.push(("Validations".into(), table(history)));
    for (heading, body) in sections {
        let _ = write!(page, "<h2>{}</h2>\n{body}\n", escape(&heading));
    }
    page
}

fn summary(trainer: &Trainer, history: &History, test: Option<&Scores>) -> String {
    let config = trainer.config();
    let parts = trainer.parts();
    let mut text = format!(
        "{} parameters; {} samples to train on, {} to validate by, {} to test with\nloss {}; optimiser {}; schedule {}; \
         batch {}; seed {}\n{} steps, {} samples in {:.1} s: {:.0} samples/s",
        trainer.parameters(),
        parts.train.len(),
        parts.validation.len(),
        parts.test.len(),
        config.loss,
        config.optim,
        config.schedule,
        config.batch,
        config.seed,
        trainer.progress().step,
        history.samples,
        history.time.as_secs_f64(),
        history.samples as f64 / history.time.as_secs_f64().max(1e-9),
    );
    for layer in &config.model.layers {
        let _ = write!(text, "\n  {layer}");
    }
    if let Some(scores) = test {
        let _ = write!(
            text,
            "\ntest, {} samples: {}",
            scores.samples,
            scores_text(scores)
        );
    }
    text
}

fn table(history: &History) -> String {
    let mut rows = String::from("<table><tr><th>step<th>loss");
    if let Some((_, first)) = history.validations.first() {
        for (metric, _) in &first.metrics {
            let _ = write!(rows, "<th>{}", metric.name());
        }
    }
    rows.push_str("</tr>\n");
    for (step, scores) in &history.validations {
        let _ = write!(rows, "<tr><td>{step}<td>{:.6}", scores.loss);
        for (_, value) in &scores.metrics {
            let _ = write!(rows, "<td>{value:.4}");
        }
        rows.push_str("</tr>\n");
    }
    rows + "</table>"
}

/// Curves over steps on common axes.
fn chart(curves: &[(&str, &Curve)]) -> String {
    let all = || curves.iter().flat_map(|c| c.1).filter(|p| p.1.is_finite());
    if all().next().is_none() {
        return "<p>Nothing was measured.</p>".into();
    }
    let (left, right, top, bottom) = AREA;
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        let low = all().map(of).fold(f64::INFINITY, f64::min);
        let high = all().map(of).fold(f64::NEG_INFINITY, f64::max);
        if high > low {
            (low, high)
        } else {
            (low - 0.5, high + 0.5)
        }
    };
    let ((first, last), (low, high)) = (bounds(|p| p.0), bounds(|p| p.1));
    let x = |step: f64| left + (step - first) / (last - first) * (right - left);
    let y = |value: f64| bottom - (value - low) / (high - low) * (bottom - top);
    let mut svg = String::from("<svg viewBox=\"0 0 1100 370\" width=\"1100\">");
    for i in 0..=4 {
        let part = f64::from(i) / 4.0;
        let (value, step) = (low + part * (high - low), first + part * (last - first));
        let _ = write!(
            svg,
            "<line x1=\"{left}\" y1=\"{0:.1}\" x2=\"{right}\" y2=\"{0:.1}\" stroke=\"#eee\"/>\
             <text x=\"64\" y=\"{0:.1}\" text-anchor=\"end\">{value:.4}</text>\
             <text x=\"{1:.1}\" y=\"337\" text-anchor=\"middle\">{step:.0}</text>",
            y(value),
            x(step)
        );
    }
    for (i, (name, curve)) in curves.iter().enumerate() {
        let colour = ["#48c", "#d62", "#292"][i % 3];
        let points: Vec<String> = (curve.iter().filter(|p| p.1.is_finite()))
            .map(|(s, v)| format!("{:.1},{:.1}", x(*s), y(*v)))
            .collect();
        let _ = write!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>\
             <text x=\"{}\" y=\"358\" fill=\"{colour}\">{}</text>",
            points.join(" "),
            left + 120.0 * i as f64,
            escape(name)
        );
    }
    svg + "</svg>"
}
