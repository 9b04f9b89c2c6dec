//! Results of several devices as one page of HTML with drawings in SVG; no script, nothing from elsewhere.

use super::results::{Results, Row};
use super::summary;
use crate::outputs::escape;
use cupola::suite::Group;
use std::collections::BTreeMap;
use std::fmt::Write;

const STYLE: &str = "body{font:14px sans-serif;margin:2em;max-width:1200px}table{border-collapse:collapse}\
td,th{border-bottom:1px solid #ddd;padding:.15em .7em;text-align:right;vertical-align:top;white-space:nowrap}\
td:first-child,th:first-child{text-align:left;white-space:normal}svg{max-width:100%;background:#fff}\
svg text{font:11px sans-serif}.mark{display:inline-block;width:.8em;height:.8em;margin-right:.4em}\
details{margin:.5em 0}";

/// The page.
pub fn page(all: &[(String, Results)]) -> String {
    let mut page = format!(
        "<!doctype html><meta charset=\"utf-8\"><title>Cupola: devices compared</title><style>{STYLE}</style>\
         <h1>Devices compared</h1>\n{}",
        devices(all)
    );
    page.push_str(
        "<p>A bar is the fraction of what the device reaches: the least time that its measured copy and arithmetic rates \
         allow, over the time taken. Working sets within a cache can pass 100&nbsp;%.</p>\n",
    );
    for group in Group::ALL {
        let names = names(all, group);
        if !names.is_empty() {
            let heading = escape(group.name());
            let _ = write!(
                page,
                "<h2>{heading}</h2>\n{}\n<details><summary>figures</summary>{}</details>\n",
                chart(all, &names),
                table(all, &names)
            );
        }
    }
    page
}

/// A colour for each device.
fn colour(position: usize) -> String {
    format!("hsl({},60%,55%)", (210 + position * 137) % 360)
}

/// Names of a group's cases in the order in which they were measured.
fn names(all: &[(String, Results)], group: Group) -> Vec<&str> {
    let mut names: Vec<&str> = vec![];
    let rows = all.iter().flat_map(|(_, r)| &r.rows);
    for row in rows.filter(|row| row.group == group.name()) {
        if !names.contains(&row.name.as_str()) {
            names.push(&row.name);
        }
    }
    names
}

fn find<'a>(results: &'a Results, name: &str) -> Option<&'a Row> {
    results.rows.iter().find(|row| row.name == name)
}

fn devices(all: &[(String, Results)]) -> String {
    let mut text = String::from("<table><tr><th>device<th>measured<th>version</tr>\n");
    for (at, (label, results)) in all.iter().enumerate() {
        let machine = &results.machine;
        let _ = writeln!(
            text,
            "<tr><td><span class=\"mark\" style=\"background:{}\"></span>{} ({}, {})<details><summary>facts</summary>{}{}\
             </details><td>{}<td>{}</tr>",
            colour(at),
            escape(&machine.name),
            escape(&machine.device),
            escape(label),
            facts("device", &machine.facts),
            facts("host", &machine.host),
            escape(&summary(&results.measured)),
            escape(&results.version)
        );
    }
    text + "</table>\n"
}

fn facts(of: &str, facts: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (name, value) in facts {
        let _ = write!(text, "{of} {}: {}<br>", escape(name), escape(value));
    }
    text
}

/// A bar for every device under the name of each case.
fn chart(all: &[(String, Results)], names: &[&str]) -> String {
    const BAR: f64 = 12.0;
    const LEFT: f64 = 330.0;
    const FULL: f64 = 560.0;
    let step = BAR * all.len() as f64 + 8.0;
    let height = step * names.len() as f64 + 24.0;
    let mut svg = format!("<svg viewBox=\"0 0 1100 {height:.0}\" width=\"1100\">");
    for tenth in (0..=10).step_by(2) {
        let x = LEFT + FULL * f64::from(tenth) / 10.0;
        let _ = write!(
            svg,
            "<line x1=\"{x:.0}\" y1=\"16\" x2=\"{x:.0}\" y2=\"{height:.0}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.0}\" y=\"11\" text-anchor=\"middle\">{}%</text>",
            10 * tenth
        );
    }
    for (line, name) in names.iter().enumerate() {
        let top = 20.0 + step * line as f64;
        let _ = write!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            top + BAR - 2.0,
            escape(name)
        );
        for (at, (label, results)) in all.iter().enumerate() {
            let Some(row) = find(results, name) else {
                continue;
            };
            let y = top + BAR * at as f64;
            // Room for a little over the whole; the figure says what lies beyond.
            let width = FULL * row.fraction.clamp(0.0, 1.15);
            let _ = write!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{}\"><title>{}: {}</title></rect>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                BAR - 2.0,
                colour(at),
                escape(label),
                escape(&figures(row)),
                LEFT + width + 5.0,
                y + BAR - 3.0,
                escape(&figures(row))
            );
        }
    }
    svg + "</svg>"
}

/// What a bar stands for: speed in the unit that bounds the case, and time.
fn figures(row: &Row) -> String {
    let speed = match row.flops > 10.0 * row.bytes {
        true => format!("{:.1} GFLOP/s", row.gflop_s),
        false => format!("{:.1} GB/s", row.gb_s),
    };
    format!(
        "{:.0}%, {speed}, {:.4} ms",
        100.0 * row.fraction,
        row.median_ms
    )
}

fn table(all: &[(String, Results)], names: &[&str]) -> String {
    let mut text = String::from("<table><tr><th>case");
    for (label, _) in all {
        let label = escape(label);
        let _ = write!(text, "<th>{label} ms<th>GFLOP/s<th>GB/s<th>of limit");
    }
    text.push_str("</tr>\n");
    for name in names {
        let _ = write!(text, "<tr><td>{}", escape(name));
        for (_, results) in all {
            match find(results, name) {
                Some(row) => {
                    let _ = write!(
                        text,
                        "<td>{:.4}<td>{:.1}<td>{:.1}<td>{:.0}%",
                        row.median_ms,
                        row.gflop_s,
                        row.gb_s,
                        100.0 * row.fraction
                    );
                }
                None => {
                    let left = results.left_out.iter().find(|l| l.name == *name);
                    let why = left.map_or("", |l| l.reason.as_str());
                    let _ = write!(text, "<td colspan=\"4\">{}", escape(why));
                }
            }
        }
        text.push_str("</tr>\n");
    }
    text + "</table>"
}
