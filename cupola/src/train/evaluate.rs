//! How well a model does on samples that it is not trained on.

use super::assemble::{Assembled, SAID, assemble, feed};
use super::checkpoint::Checkpoint;
use crate::error::Result;
use crate::runner::Options;
use cupola_ir::{Graph, Tensor, TensorType};
use cupola_runtime::{Host, Program, Request, RunValue, Session};
use cupola_train::data::{Dealing, Loader, Part, Position};
use cupola_train::metrics::{Bleu, Confusion, Mean, Metric};
use std::sync::Arc;

/// Results of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// Mean loss over samples; of losses by class over the targets that count.
    pub loss: f64,
    /// What else was asked for, in that order.
    pub metrics: Vec<(Metric, f64)>,
    /// Samples looked at.
    pub samples: usize,
}

impl Scores {
    /// The number of this name: `loss` or a metric's.
    pub fn value(&self, name: &str) -> Option<f64> {
        match name {
            "loss" => Some(self.loss),
            _ => (self.metrics.iter()).find_map(|(m, v)| (m.name() == name).then_some(*v)),
        }
    }
}

/// Output of evaluations: by how much the loss of a batch counts, where that is not its number of samples.
const TOTAL: &str = "total";

/// What is gathered over the batches.
#[derive(Default)]
struct Gathered {
    loss: Mean,
    squares: Mean,
    confusion: Confusion,
    bleu: Bleu,
    /// Whether that is asked for: it takes time.
    has_bleu: bool,
    samples: usize,
}

impl Gathered {
    /// Counts what is said and what was to be said.
    fn compare(&mut self, said: &Tensor, wanted: &Tensor, ignored: Option<i64>) {
        match (said.to_vec::<i64>(), wanted.to_vec::<i64>()) {
            (Some(said), Some(labels)) => {
                let width = wanted.shape().get(1).copied().unwrap_or(1).max(1);
                for (said, labels) in said.chunks(width).zip(labels.chunks(width)) {
                    let (said, labels) = counted(said, labels, ignored);
                    self.confusion.add(&said, &labels);
                    if self.has_bleu {
                        self.bleu.add(&said, &labels);
                    }
                }
            }
            _ => {
                let pairs = numbers(said).into_iter().zip(numbers(wanted));
                pairs.for_each(|(a, b)| self.squares.add((a - b).powi(2), 1.0));
            }
        }
    }

    fn value(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Perplexity => self.loss.value().exp(),
            Metric::Mse => self.squares.value(),
            Metric::Bleu => self.bleu.value(),
            Metric::Accuracy | Metric::Precision | Metric::Recall | Metric::F1 => {
                self.confusion.value(metric).unwrap_or(f64::NAN)
            }
        }
    }
}

/// The graph of evaluations: loss, and what is said.
///
/// # Errors
/// What the graph's verifier finds.
pub(super) fn graph_of(model: &Assembled) -> Result<Graph> {
    let mut values = vec![("loss", model.loss), (SAID, model.said)];
    // The loss is the last mean that was made.
    values.extend(model.net.totals().last().map(|total| (TOTAL, *total)));
    let mut graph = model.net.eval_graph(&values)?;
    graph.retain_outputs(|i| i < values.len());
    Ok(graph)
}

/// How well the model of a checkpoint does on samples.
///
/// # Errors
/// Samples that do not suit the model; what compilation and the runs find.
pub fn evaluate_checkpoint(
    checkpoint: &Checkpoint,
    part: &Part,
    host: &Host,
    options: &Options,
) -> Result<Scores> {
    let config = &checkpoint.config;
    let model = assemble(config, &part.data)?;
    let program = Arc::new(Program::compile(graph_of(&model)?, host, options)?);
    let batch = config.validation.batch.unwrap_or(config.batch);
    let slot = |name: &str| checkpoint.slots.get(name).cloned().map(RunValue::from);
    evaluate(&program, &model, part, batch, &config.metrics()?, &slot)
}

/// Runs the model over a part. `program` is that of its evaluation graph, `slot` gives the values of its state.
///
/// # Errors
/// What the runs find.
pub(super) fn evaluate(
    program: &Arc<Program>,
    model: &Assembled,
    part: &Part,
    batch: usize,
    metrics: &[Metric],
    slot: &dyn Fn(&str) -> Option<RunValue>,
) -> Result<Scores> {
    let mut session = Session::new(program.clone());
    let names: Vec<String> = program.graph().slots.keys().cloned().collect();
    for name in names {
        if let Some(value) = slot(&name) {
            session.state_mut().set_slot(&name, value)?;
        }
    }
    let inputs = inputs_of(program);
    let dealing = Dealing {
        batch,
        drop_last: false,
        shuffle: false,
        seed: 0,
    };
    let loader = Loader::new(part, dealing, Position::default(), Some(1));
    let loader = loader.map_err(|_| cupola_runtime::RuntimeError::Lost)?;
    let mut all = Gathered {
        has_bleu: metrics.contains(&Metric::Bleu),
        ..Gathered::default()
    };
    for batch in loader {
        let mut request = Request::new();
        for (name, tensor) in feed(&batch, &inputs, &model.target)? {
            request = request.input(&name, tensor);
        }
        let outputs = session.execute(request)?;
        let output = |wanted: &str| -> Result<Option<Tensor>> {
            let found = outputs.iter().find(|(n, _)| n == wanted);
            let value = found.map(|(_, v)| v.to_host()).transpose()?;
            Ok(value.and_then(|v| v.as_tensor().cloned()))
        };
        let number = |name: &str| -> Result<Option<f64>> {
            Ok(output(name)?.and_then(|t| numbers(&t).first().copied()))
        };
        let total = number(TOTAL)?.unwrap_or(batch.len as f64);
        // The mean over no targets is no number, and counts for nothing.
        if total != 0.0 {
            let loss = number("loss")?;
            all.loss.add(loss.unwrap_or(f64::NAN), total);
        }
        all.samples += batch.len;
        let (Some(said), Some(wanted)) = (output(SAID)?, batch.column("y")) else {
            continue;
        };
        all.compare(&said, wanted, model.ignored);
    }
    Ok(Scores {
        loss: all.loss.value(),
        metrics: metrics.iter().map(|m| (*m, all.value(*m))).collect(),
        samples: all.samples,
    })
}

/// What is said and what was to be said, without places where any class would do.
fn counted(said: &[i64], labels: &[i64], ignored: Option<i64>) -> (Vec<i64>, Vec<i64>) {
    let both = said.iter().copied().zip(labels.iter().copied());
    both.filter(|(_, label)| ignored != Some(*label)).unzip()
}

/// All elements as f64.
fn numbers(t: &Tensor) -> Vec<f64> {
    cupola_ir::convert::lanes(t).map_or(vec![], |l| l.into_f64s())
}

/// Names and types of the tensor inputs of a program.
pub(super) fn inputs_of(program: &Program) -> Vec<(String, TensorType)> {
    let graph = program.graph();
    let each = graph.inputs().iter();
    each.filter_map(|v| {
        Some((
            graph.input_name(*v).to_string(),
            graph.ty(*v).as_tensor()?.clone(),
        ))
    })
    .collect()
}
