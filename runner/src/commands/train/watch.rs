//! What is told while a model is trained: a bar on terminals, JSON lines, and what the report draws.

use super::{scores_json, scores_text};
use crate::fail::{Failure, Outcome};
use crate::interrupt::Interrupt;
use cupola::train::{Ended, Event, Scores, StepReport, Trainer};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value as Json, json};
use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

/// Most points of a curve; of longer runs neighbours are joined.
const MOST_POINTS: usize = 4096;

/// How fast the shown loss and speed follow: the weight of what was shown before.
const INERTIA: f64 = 0.95;

/// A point of the curves.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Step.
    pub step: u64,
    /// Mean loss of the steps joined here.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
}

/// What the report draws.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Steps, joined.
    pub points: Vec<Point>,
    joined: u64,
    sum: (f64, u64),
    /// Validations.
    pub validations: Vec<(u64, Scores)>,
    /// Wall time.
    pub time: Duration,
    /// Samples seen.
    pub samples: u64,
}

impl History {
    fn step(&mut self, report: &StepReport) {
        self.samples += report.samples as u64;
        self.sum.0 += report.loss;
        self.sum.1 += 1;
        if self.sum.1 < self.joined.max(1) {
            return;
        }
        let (sum, count) = std::mem::take(&mut self.sum);
        self.points.push(Point {
            step: report.step,
            loss: sum / count as f64,
            lr: report.lr,
        });
        if self.points.len() == MOST_POINTS {
            self.joined = 2 * self.joined.max(1);
            let pairs = self.points.chunks_exact(2);
            let joined = pairs.map(|p| Point {
                loss: (p[0].loss + p[1].loss) / 2.0,
                ..p[1]
            });
            self.points = joined.collect();
        }
    }
}

/// Where JSON lines go.
enum Lines {
    None,
    Output,
    File(File),
}

/// Hears what happens and tells it.
pub struct Watch {
    bar: ProgressBar,
    lines: Lines,
    failure: Option<std::io::Error>,
    /// What the report draws.
    pub history: History,
    start: Instant,
    shown: Option<(f64, f64)>,
}

impl Watch {
    /// Of a run that is to begin.
    pub fn new(trainer: &Trainer, json: Option<&str>) -> Outcome<Watch> {
        let bar = ProgressBar::new(trainer.total_steps());
        bar.set_position(trainer.progress().step);
        bar.reset_eta();
        // The template is a constant.
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {eta} left") {
            bar.set_style(style);
        }
        let lines = match json {
            None => Lines::None,
            Some("-") => Lines::Output,
            Some(path) => {
                let path = Path::new(path);
                let file = File::create(path).map_err(|e| Failure::io("cannot write", path, e))?;
                Lines::File(file)
            }
        };
        Ok(Watch {
            bar,
            lines,
            failure: None,
            history: History::default(),
            start: Instant::now(),
            shown: None,
        })
    }

    /// Hears an event; breaks where Ctrl-C came or a line cannot be written.
    pub fn hear(&mut self, event: &Event, interrupt: &Interrupt) -> ControlFlow<()> {
        match event {
            Event::Step(report) => {
                self.history.step(report);
                self.show(report);
                self.line(&step_json(report));
            }
            Event::Validated {
                step,
                scores,
                is_best,
            } => {
                let mut document =
                    json!({ "step": step, "validation": scores_json(scores, *step) });
                document["best"] = json!(is_best);
                self.line(&document);
                self.say(&format!("step {step}: validation {}", scores_text(scores)));
                self.history.validations.push((*step, scores.clone()));
            }
            Event::Saved(path) => {
                self.line(&json!({ "checkpoint": path.display().to_string() }));
                tracing::info!("wrote {}", path.display());
            }
            Event::Note(text) => tracing::warn!("{text}"),
        }
        match interrupt.is_set() || self.failure.is_some() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn show(&mut self, report: &StepReport) {
        let rate = rate(report);
        let follow = |before: f64, now: f64| INERTIA * before + (1.0 - INERTIA) * now;
        let (loss, speed) = match self.shown {
            None => (report.loss, rate),
            Some((loss, speed)) => (follow(loss, report.loss), follow(speed, rate)),
        };
        // A skipped step may have no loss.
        if loss.is_finite() {
            self.shown = Some((loss, speed));
        }
        self.bar.set_position(report.step);
        let scale = report
            .scale
            .map_or(String::new(), |s| format!(" scale {s}"));
        let text = format!(
            "loss {loss:.4} lr {:.3e}{scale} {speed:.0} samples/s",
            report.lr
        );
        self.bar.set_message(text);
    }

    /// A line for people, on standard output unless JSON goes there.
    fn say(&mut self, text: &str) {
        let to_output = !matches!(self.lines, Lines::Output);
        self.bar.suspend(|| match to_output {
            true => println!("{text}"),
            false => tracing::info!("{text}"),
        });
    }

    fn line(&mut self, document: &Json) {
        let written = match &mut self.lines {
            Lines::None => Ok(()),
            Lines::Output => {
                self.bar.suspend(|| println!("{document}"));
                Ok(())
            }
            Lines::File(file) => writeln!(file, "{document}"),
        };
        if let Err(e) = written {
            self.failure.get_or_insert(e);
        }
    }

    /// Ends the bar; tells how it ended and what the held-out samples say.
    pub fn finish(&mut self, ended: Ended, test: Option<&Scores>) -> Outcome {
        self.history.time = self.start.elapsed();
        self.bar.finish_and_clear();
        let step = self.history.points.last().map_or(0, |p| p.step);
        let seconds = self.history.time.as_secs_f64();
        let speed = self.history.samples as f64 / seconds.max(1e-9);
        let how = match ended {
            Ended::Done => "done",
            Ended::Early => "stopped early: validation no longer improved",
            Ended::Stopped => "stopped",
        };
        let mut document = json!({
            "ended": how, "step": step, "seconds": seconds, "samples_per_s": speed,
        });
        if let Some(scores) = test {
            document["test"] = scores_json(scores, step);
        }
        self.line(&document);
        self.say(&match self.shown {
            Some((loss, ..)) => {
                format!("{how}: step {step}, loss {loss:.6}, {seconds:.1} s, {speed:.0} samples/s")
            }
            None => format!("{how}: no step was left to do"),
        });
        if let Some(scores) = test {
            self.say(&format!(
                "test, {} samples: {}",
                scores.samples,
                scores_text(scores)
            ));
        }
        match self.failure.take() {
            None => Ok(()),
            Some(e) => Err(Failure::new(
                1,
                "io",
                format!("cannot write JSON lines: {e}"),
            )),
        }
    }
}

/// Samples per second.
fn rate(report: &StepReport) -> f64 {
    report.samples as f64 / report.time.as_secs_f64().max(1e-9)
}

fn step_json(report: &StepReport) -> Json {
    let mut document = json!({
        "step": report.step,
        "epoch": report.epoch + 1,
        "loss": report.loss,
        "lr": report.lr,
        "scale": report.scale.unwrap_or(1.0),
        "samples_per_s": rate(report),
    });
    if let Some(norm) = report.grad_norm {
        document["grad_norm"] = json!(norm);
    }
    if report.is_skipped {
        document["skipped"] = json!(true);
    }
    document
}
