//! The report: one page of HTML with drawings in SVG; no script, nothing from elsewhere.

use super::{bound, charts, millis, rate, sources, summary};
use crate::outputs::escape;
use cupola::{Profile, StepProfile};
use std::fmt::Write;

const STYLE: &str = "body{font:14px sans-serif;margin:2em;max-width:1200px}table{border-collapse:collapse}\
td,th{border-bottom:1px solid #ddd;padding:.15em .7em;text-align:right;vertical-align:top;white-space:nowrap}\
td:first-child,th:first-child,td:last-child,th:last-child{text-align:left;white-space:normal}\
.bar{display:inline-block;height:.8em;background:#48c}svg{max-width:100%;background:#fff;border:1px solid #ddd}\
svg text{font:11px sans-serif}pre{background:#f6f6f6;padding:.7em}:target{background:#fe8}";

/// The page.
pub fn page(model: &str, profile: &Profile) -> String {
    let title = escape(model);
    let mut page = format!(
        "<!doctype html><meta charset=\"utf-8\"><title>{title}: profile</title><style>{STYLE}</style>\
         <h1>{title}</h1><pre>{}</pre>",
        escape(&summary(profile))
    );
    let sections = [
        ("Kernels by time", table(profile)),
        ("Roofline", charts::roofline(profile)),
        ("Working memory", charts::memory(profile)),
        ("Graph of kernels", charts::graph(profile)),
    ];
    for (heading, body) in sections {
        let _ = write!(page, "<h2>{heading}</h2>\n{body}\n");
    }
    page
}

fn table(profile: &Profile) -> String {
    let mut order: Vec<&StepProfile> = profile.steps.iter().collect();
    order.sort_by_key(|s| std::cmp::Reverse(s.time));
    let mut rows = String::from(
        "<table><tr><th>kernel<th>calls<th>ms<th>share<th><th>MB<th>MFLOP<th>GB/s<th>GFLOP/s<th>of its limit\
         <th>bound<th>sources</tr>\n",
    );
    let run = profile.run.as_secs_f64().max(1e-12);
    let number = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.1}"));
    for s in order {
        let share = 100.0 * s.time.as_secs_f64() / run;
        let percent = s
            .fraction()
            .map_or(String::new(), |f| format!("{:.0}%", 100.0 * f));
        let _ = writeln!(
            rows,
            "<tr id=\"s{}-{}\"><td>{}<td>{}<td>{:.4}<td>{share:.1}%<td><span class=\"bar\" style=\"width:{:.0}px\"></span>\
             <td>{:.3}<td>{:.2}<td>{}<td>{}<td>{percent}<td>{}<td>{}</tr>",
            s.at.0,
            s.at.1,
            escape(&s.name),
            s.calls,
            millis(s.time),
            share.clamp(0.0, 100.0) * 2.0,
            s.bytes as f64 / 1e6,
            s.flops as f64 / 1e6,
            number(rate(s.bytes, s.time)),
            number(rate(s.flops, s.time)),
            bound(s),
            escape(&sources(s))
        );
    }
    let outside = profile.overhead();
    let share = 100.0 * outside.as_secs_f64() / run;
    let _ = writeln!(
        rows,
        "<tr><td>outside of kernels<td><td>{:.4}<td>{share:.1}%<td><td><td><td><td><td><td><td></tr></table>",
        millis(outside)
    );
    rows
}
